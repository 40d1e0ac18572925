"""The design programs: they parse, print and check; the forward ones mean what float64 NumPy says."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.interpreter import interpret, interpret_program
from qimeng_attention.tl.numerics import round_to, unit_roundoff
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program

FOLDER = Path(__file__).parents[2] / "docs" / "design" / "programs"
PAPER = (
    "paper_sketch",
    "paper_code",
)  # the paper's own form: no sizes or grid, printed as it prints, not checked
NAMES = sorted(path.stem for path in FOLDER.glob("*.tl"))
F32 = 2e-4  # of a row's LSE: float32 sums of a few hundred products and exponentials


def _references():
    path = Path(__file__).parent / "programs" / "references.py"
    spec = importlib.util.spec_from_file_location("program_references", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


references = _references()


def text_of(name):
    return (FOLDER / f"{name}.tl").read_text("utf-8")


def statements_of(text):
    """The lines without comments and blank lines."""
    code = (line.partition("#")[0].rstrip() for line in text.splitlines())
    return [line for line in code if line]


# ------------------------------------------------------------------ text


@pytest.mark.parametrize("name", NAMES)
def test_a_program_survives_printing(name):
    program = parse(text_of(name), name)
    printed = print_program(program)
    assert parse(printed) == program
    assert print_program(parse(printed)) == printed


@pytest.mark.parametrize("name", [n for n in NAMES if n not in PAPER])
def test_a_program_is_written_as_it_prints(name):
    assert statements_of(text_of(name)) == statements_of(print_program(parse(text_of(name))))


@pytest.mark.parametrize("name", [n for n in NAMES if n not in PAPER])
def test_the_checker_passes_a_program(name):
    checked = check_text(text_of(name), file=f"{name}.tl")
    assert len(checked) == text_of(name).count("\nKernel ")


def test_a_sketch_is_told_from_code():
    with pytest.raises(DiagnosticError) as error:
        check_text(text_of("paper_sketch"))
    assert [d.code for d in error.value.diagnostics] == ["TL100"]


# ------------------------------------------------------------------ meaning


@dataclass(frozen=True)
class Case:
    """How to run a program small: its tile sizes replaced, and what to put in."""

    sizes: tuple[dict[str, int], ...]
    inputs: Callable[[np.random.Generator, dict[str, int]], dict[str, np.ndarray]]
    reference: Callable[..., dict[str, tuple[np.ndarray, np.ndarray]]]
    smaller: tuple[tuple[str, str], ...] = (("BM = 128, BN = 64", "BM = 16, BN = 16"), ("D = 128", "D = 16"))
    scalars: tuple[tuple[str, float], ...] = (("scale", 0.3),)
    weights: str = "bf16"  # the type that weights are rounded to


def normal(rng, *shape):
    return round_to(rng.standard_normal(shape).astype(np.float32), "bf16")


def qkv(rng, z, d=16, dv=None):
    shapes = {"Q": (z["Sq"], z["Hq"], d), "K": (z["Sk"], z["Hk"], d), "V": (z["Sk"], z["Hk"], dv or d)}
    return {name: normal(rng, z["B"], *shape) for name, shape in shapes.items()}


SHAPES = (
    (35, 35),
    (17, 40),
    (40, 17),
    (1, 1),
    (1, 0),
    (0, 9),
    (16, 24),
)  # ragged, Sk < Sq, none, whole tiles
SIZES = tuple({"B": 1, "Sq": sq, "Sk": sk, "Hq": 4, "Hk": 2} for sq, sk in SHAPES)


def gate(rng, z):
    steps = -rng.random((z["B"], z["Hq"], z["Sk"])).astype(np.float32)
    return qkv(rng, z) | {"Gate": np.cumsum(steps, axis=2, dtype=np.float32)}


def two_scores(rng, z):
    x = qkv(rng, {**z, "Hq": 2 * z["H"], "Hk": 2 * z["H"]})
    return x | {"V": normal(rng, z["B"], z["Sk"], z["H"], 8), "Lambda": rng.random(z["H"]).astype(np.float32)}


def chunks(rng, z):
    return {name: normal(rng, z["B"], z["S"], z["H"], d) for name, d in (("Q", 16), ("K", 16), ("V", 8))}


def selected(rng, z):
    z = {**z, "Hq": 3 * z["Hk"]}
    idx = np.full((z["B"], z["Sq"], z["Hk"], z["n"]), -1)
    for place in np.ndindex(idx.shape[:3]):
        tiles = rng.permutation(-(-z["Sk"] // 16))[: z["n"]]
        idx[place][rng.permutation(z["n"])[: len(tiles)]] = tiles  # -1 anywhere in the list
    return qkv(rng, z) | {"Idx": idx}


def lists(rng, z):
    document = np.sort(rng.integers(0, 3, (z["B"], z["Sk"])), axis=1)
    rows, tiles = -(-z["Sq"] // 16), -(-z["Sk"] // 16)
    listed, whole = np.full((z["B"], rows, z["n"]), -1), np.zeros((z["B"], rows, z["n"]), int)
    for i, block in np.ndindex(z["B"], rows):
        q = np.arange(block * 16, min(block * 16 + 16, z["Sq"]))[:, None]
        own = np.where(q < z["Sk"], document[i][np.minimum(q, z["Sk"] - 1)], 0) if z["Sk"] else q * 0
        places = list(rng.permutation(z["n"]))
        for tile in rng.permutation(tiles):
            k = np.arange(tile * 16, min(tile * 16 + 16, z["Sk"]))
            seen = (k <= q) & (own == document[i][k])
            if seen.any():
                place = places.pop()
                listed[i, block, place], whole[i, block, place] = tile, seen.all()
    return qkv(rng, z) | {"List": listed, "Whole": whole, "Document": document}


def cache_of(page, length):
    def make(rng, z):
        table = np.full((z["B"], z["Most"]), 10_000)  # an entry behind a sequence's pages may be anything
        free = list(rng.permutation(z["Pages"]))
        for i, n in enumerate(length):
            table[i, : -(-n // page)] = [free.pop() for _ in range(-(-n // page))]
        slots = z["Pages"] * page
        x = {"Q": normal(rng, z["B"], z["Hk"] * 3, 16), "Table": table, "Length": np.array(length)}
        return x | {"K": normal(rng, slots, z["Hk"], 16), "V": normal(rng, slots, z["Hk"], 16)}

    return make


def latent(rng, z):
    k = normal(rng, z["B"], z["Sk"], 48)
    return {"Q": normal(rng, z["B"], z["H"], 48), "K": k, "Length": np.array([z["Sk"], min(1, z["Sk"]), 0])}


def packed(rng, z):
    sq, sk = (13, 0, 1, 20), (13, 5, 0, 33)
    starts = {"StartQ": np.cumsum((0, *sq)), "StartK": np.cumsum((0, *sk))}
    x = {
        "Q": normal(rng, z["Tq"], z["Hq"], 16),
        "K": normal(rng, z["Tk"], z["Hk"], 16),
        "V": normal(rng, z["Tk"], z["Hk"], 16),
    }
    return x | starts


def quantised(rng, z):
    x = {name: round_to(8 * value, "e4m3") for name, value in qkv(rng, z, d=32).items()}
    return x | {"DescaleK": (0.1 + rng.random((z["B"], z["Hk"], -(-z["Sk"] // 32)))).astype(np.float32)}


def layer(rng, z):
    bias = rng.standard_normal(z["N"]).astype(np.float32)
    return {"A": normal(rng, z["M"], z["K"]), "W": normal(rng, z["K"], z["N"]), "Bias": bias}


PAGED = {"B": 4, "Pages": 20, "Most": 12, "Hk": 2}
LENGTHS = (39, 1, 0, 16)
ROWS = (
    ("BM = 16, BN = 64", "BM = 16, BN = 16"),
    ("D = 128", "D = 16"),
    ("G = 16", "G = 3"),
    ("G = 8", "G = 3"),
)
CASES = {
    "gqa_causal": Case(SIZES, qkv, references.gqa_causal),
    "gqa_h200": Case(
        SIZES[:4],
        qkv,
        references.gqa_causal,
        (("BM = 128, BN = 128", "BM = 64, BN = 16"), ("D = 128", "D = 16")),
    ),
    "sigmoid": Case(SIZES, qkv, references.sigmoid, scalars=(("scale", -0.3), ("bias", -2.0))),
    "sink": Case(
        SIZES,
        lambda rng, z: qkv(rng, z) | {"Sink": rng.standard_normal(4).astype(np.float32)},
        references.sink,
        (("BM = 128, BN = 64", "BM = 16, BN = 16"), ("D = 64", "D = 16")),
    ),
    "alibi": Case(
        SIZES,
        lambda rng, z: qkv(rng, z) | {"Slopes": rng.random(4).astype(np.float32)},
        references.alibi,
        scalars=(("scale", -0.3),),
    ),
    "softcap": Case(SIZES, qkv, references.softcap, scalars=(("scale", 0.5), ("cap", 1.5))),
    "window_and_sinks": Case(
        tuple({**z, "Window": w, "First": f} for z in SIZES[:5] for w, f in ((7, 3), (1, 0), (50, 9), (0, 1))),
        qkv,
        lambda x, scale, z: references.window_and_sinks(x, scale, z["Window"], z["First"]),
    ),
    "forgetting": Case(SIZES, gate, references.forgetting, scalars=(("scale", -0.3),)),
    "block_list": Case(tuple({**z, "n": 6} for z in SIZES), lists, references.block_list),
    "stick_breaking": Case(
        SIZES,
        qkv,
        references.stick_breaking,
        (("BM = 128, BN = 64", "BM = 16, BN = 16"), ("D = 64", "D = 16")),
    ),
    "linear": Case(
        tuple({"B": 2, "S": n, "H": 2} for n in (0, 1, 19, 32)),
        chunks,
        references.linear,
        (("C = 64", "C = 16"), ("Dk = 64, Dv = 64", "Dk = 16, Dv = 8")),
    ),
    "differential": Case(
        tuple({"B": 1, "Sq": q, "Sk": k, "H": 2} for q, k in SHAPES),
        two_scores,
        references.differential,
        (("BM = 64, BN = 64", "BM = 16, BN = 16"), ("D = 64, Dv = 128", "D = 16, Dv = 8")),
    ),
    "nsa_selected": Case(
        tuple({"B": 2, "Sq": q, "Sk": k, "Hk": 2, "n": 3} for q, k in ((5, 60), (1, 8), (3, 0))),
        selected,
        lambda x, scale, z: references.nsa_selected(x, scale, 16),
        ROWS,
    ),
    "paged": Case(
        (PAGED,),
        cache_of(16, LENGTHS),
        lambda x, scale, z: references.paged(x, scale, 16),
        (*ROWS, ("Page = 64", "Page = 16")),
    ),
    "paged_gather": Case(
        (PAGED,),
        cache_of(4, LENGTHS),
        lambda x, scale, z: references.paged(x, scale, 4),
        (*ROWS, ("Page = 16", "Page = 4")),
    ),
    "mla_decode": Case(
        tuple({"B": 3, "Sk": k, "H": 20, "Splits": n} for k, n in ((40, 3), (7, 2), (0, 1), (9, 4))),
        latent,
        lambda x, scale, z: references.mla_decode(x, scale, 32),
        (
            ("BM = 64, BN = 64", "BM = 16, BN = 16"),
            ("Dqk = 576, Dv = 512", "Dqk = 48, Dv = 32"),
            ("Dv = 512", "Dv = 32"),
        ),
    ),
    "varlen": Case(({"B": 4, "Tq": 34, "Tk": 51, "Most": 20, "Hq": 4, "Hk": 2},), packed, references.varlen),
    "fp8": Case(
        SIZES,
        quantised,
        lambda x, scale, descale_q, descale_v, z: references.fp8(x, scale, descale_q, descale_v, 32),
        (("BM = 128, BN = 128", "BM = 64, BN = 32"), ("D = 128", "D = 32")),
        (("scale", 0.02), ("descale_q", 0.125), ("descale_v", 0.25)),
        "e4m3",
    ),
    "gemm_epilogue": Case(
        tuple({"M": m, "N": n, "K": k} for m, n, k in ((20, 19, 33), (1, 1, 1), (16, 16, 0))),
        layer,
        references.gemm_epilogue,
        (("BM = 128, BN = 128, BK = 64", "BM = 16, BN = 16, BK = 16"),),
        (),
    ),
}


def small_text(name):
    text = text_of(name).replace("warps 4 along", "warps 1 along")
    for old, new in CASES[name].smaller:
        text = text.replace(old, new)
    return text


@cache
def small(name):
    return check_text(small_text(name), file=f"{name}.tl")


def expected(case, x, scalars, sizes):
    """Call the reference with the sizes where it asks for them."""
    wide = {n: a.astype(np.float64) if a.dtype.kind == "f" else a for n, a in x.items()}
    extra = {"z": sizes} if "z" in case.reference.__code__.co_varnames[: case.reference.__code__.co_argcount] else {}
    return case.reference(wide, **scalars, **extra)


def assert_close(name, got, value, bound, weights):
    """One rounding of each weight, one of the result, and float32 sums behind them."""
    assert np.array_equal(np.isneginf(got), np.isneginf(value)), name
    seen = np.isfinite(value)
    if name == "Lse":
        allowed = F32 * (1 + np.abs(value))
    else:
        allowed = unit_roundoff(weights) * bound + unit_roundoff("bf16") * np.abs(value) + F32 * (1 + bound)
    worst = np.abs(got[seen] - value[seen]) - allowed[seen]
    assert not np.any(worst > 0), f"{name} is off by {worst.max():.2e} more than its types explain"
    assert not np.isnan(got).any(), name


RUNS = [(name, number) for name, case in CASES.items() for number in range(len(case.sizes))]


def assert_means(kernels, case, number):
    sizes, scalars = case.sizes[number], dict(case.scalars)
    x = case.inputs(np.random.default_rng(number), sizes)
    outputs = interpret_program(kernels, sizes, x, scalars)
    for output, (value, bound) in expected(case, x, scalars, sizes).items():
        assert_close(output, outputs[output], value, bound, case.weights)


@pytest.mark.parametrize(("name", "number"), RUNS, ids=[f"{n}-{i}" for n, i in RUNS])
def test_a_forward_program_means_what_numpy_says(name, number):
    assert_means(small(name), CASES[name], number)


NO_REWRITING = ("mla_decode",)  # its consumers share columns, `roles` shares rows


@pytest.mark.parametrize("name", [n for n in CASES if n not in NO_REWRITING])
def test_its_schedule_keeps_the_meaning(name):
    """On ragged sizes, and on fewer keys than queries where the program has such a run."""
    kernels = check(schedule(parse(small_text(name))))
    assert all(k.level == "scheduled" for k in kernels)
    for number in range(0, len(CASES[name].sizes), 2):
        assert_means(kernels, CASES[name], number)


@pytest.mark.parametrize("name", NO_REWRITING)
def test_a_choice_that_no_rewriting_makes_is_refused(name):
    with pytest.raises(DiagnosticError) as error:
        schedule(parse(text_of(name)))
    assert any(d.code == "TL603" and "along Dv" in d.message for d in error.value.diagnostics)


def test_the_backward_program_means_the_formula():
    text = (
        text_of("backward")
        .replace("BM = 64, BN = 64", "BM = 16, BN = 16")
        .replace("BM = 128", "BM = 16")
        .replace("D = 64", "D = 16")
    )
    kernels = check_text(text)
    for number, (sq, sk) in enumerate(((35, 35), (17, 40), (40, 17), (1, 1))):
        rng = np.random.default_rng(number)
        x = {n: normal(rng, 1, s, 2, 16) for n, s in (("Q", sq), ("K", sk), ("V", sk), ("dO", sq))}
        forward = references.gqa_causal({n: x[n].astype(float) for n in "QKV"}, 0.3)
        x |= {
            "Out": round_to(forward["Out"][0].astype(np.float32), "bf16"),
            "Lse": forward["Lse"][0].astype(np.float32),
        }
        got = interpret_program(kernels, {"B": 1, "Sq": sq, "Sk": sk, "H": 2}, x, {"scale": 0.3})
        wide = {n: a.astype(np.float64) for n, a in x.items()}
        for name, (value, bound) in references.backward(wide, 0.3).items():
            assert_close(name, got[name], value, bound, "bf16")


# ------------------------------------------------------------------ scheduled code for an H200

H200 = (("BM = 128, BN = 128", "BM = 128, BN = 16"), ("D = 128", "D = 16"))
H200_SIZES = tuple(
    {"B": 1, "Sq": sq, "Sk": sk, "Hq": 2, "Hk": 1} for sq, sk in ((130, 70), (260, 100), (1, 1), (5, 0), (128, 64))
)


def h200(name):
    text = text_of(name)
    for old, new in H200:
        text = text.replace(old, new)
    return text


@pytest.mark.parametrize("sizes", H200_SIZES, ids=lambda z: f"{z['Sq']}x{z['Sk']}")
def test_the_scheduled_form_means_what_the_code_means(sizes):
    """Its blocks see many tiles, one, or none (Sk < Sq); every interleaving gives the same numbers."""
    x = qkv(np.random.default_rng(1), sizes)
    code, scheduled = (check_text(h200(n), model=False)[0] for n in ("gqa_h200", "gqa_h200_scheduled"))
    wanted = interpret(code, sizes, x, {"scale": 0.3})
    first = interpret(scheduled, sizes, x, {"scale": 0.3})
    for output, value in wanted.items():
        # NumPy's products of 64 rows and of 128 may differ in float32's last place, and so one bf16 rounding
        np.testing.assert_allclose(first[output], value, rtol=2**-7, atol=2**-12)
    for seed in range(1, 17):
        other = interpret(scheduled, sizes, x, {"scale": 0.3}, seed=seed)
        assert all(np.array_equal(first[n], other[n]) for n in first)


FAULTS = {  # of the text without comments: what is replaced, by what, and the codes that may name it
    "no wait for K": (f"{12 * ' '}Wait K.full\n{12 * ' '}Wait turn w", f"{12 * ' '}Wait turn w", {"TL402"}),
    "no wait for K in the loop": (f"{16 * ' '}Wait K.full\n", "", {"TL402"}),
    "no wait for V": (f"{16 * ' '}Wait V.full\n", "", {"TL402"}),
    "no wait for Q": (f"{8 * ' '}Wait Q.full\n", "", {"TL402"}),
    "no wait for an empty K": (f"{16 * ' '}Wait K.empty\n", "", {"TL404"}),
    "no wait for an empty V": (f"{16 * ' '}Wait V.empty\n", "", {"TL404"}),
    "no wait for an empty Q": (f"{8 * ' '}Wait Q.empty\n", "", {"TL404"}),
    "no release of K": (f"{16 * ' '}Release K\n", "", {"TL404"}),
    "no release of V": (f"{16 * ' '}Release V\n", "", {"TL404"}),
    "no release of the last V": (f"\n{12 * ' '}Release V", "", {"TL404"}),
    "no release of Q": (f"{8 * ' '}Release Q\n", "", {"TL404"}),
    "V copied beside its own K": ("k = (i - 1) * BN, head_k]", "k = i * BN, head_k]", {"TL407"}),
    "V expected one ahead": ("V at [k = (i - 1) * BN]", "V at [k = i * BN]", {"TL407"}),
    "K copied twice": ("[batch, k = i * BN, head_k]", "[batch, k = i // 2 * BN, head_k]", {"TL407"}),
    "K released under its GEMM": (f"{16 * ' '}Wait gemm pending 1\n", "", {"TL404"}),
    "first K released under its GEMM": (
        f"{12 * ' '}Wait gemm pending 0\n{12 * ' '}Release K",
        f"{12 * ' '}Release K",
        {"TL404"},
    ),
    "S read in flight": (
        f"{12 * ' '}Wait gemm pending 0\n{12 * ' '}Release K",
        f"{12 * ' '}Wait gemm pending 1\n{12 * ' '}Release K",
        {"TL404"},
    ),
    "V released under its GEMM": (f"{16 * ' '}Wait gemm pending 0\n", "", {"TL404"}),
    "O rescaled in flight": (
        f"{16 * ' '}Wait gemm pending 0\n{16 * ' '}Release V\n{16 * ' '}Compute O * alpha and get new O\n",
        f"{16 * ' '}Compute O * alpha and get new O\n{16 * ' '}Wait gemm pending 0\n{16 * ' '}Release V\n",
        {"TL406"},
    ),
    "P overwritten in flight": (
        f"{16 * ' '}Wait gemm pending 0\n{16 * ' '}Release V\n{16 * ' '}Compute O * alpha and get new O\n",
        "",
        {"TL406"},
    ),
    "waits although no key is seen": (
        f"{8 * ' '}if first < last\n{12 * ' '}Wait V.full",
        f"{8 * ' '}if 0 <= last\n{12 * ' '}Wait V.full",
        {"TL409"},
    ),
    "begins although no key is seen": (
        f"{8 * ' '}if first < last\n{12 * ' '}Wait K.full",
        f"{8 * ' '}if 0 <= last\n{12 * ' '}Wait K.full",
        {"TL409"},
    ),
    "no wait for the turn": (f"{16 * ' '}Wait turn w\n", "", {"TL411"}),
    "no turn passed on": (f"{16 * ' '}Pass turn\n", "", {"TL409"}),
    "no wait for the store": (
        f"{8 * ' '}Wait stores pending 0\n{8 * ' '}Barrier",
        f"{8 * ' '}Barrier",
        {"TL404"},
    ),
    "no barrier behind that wait": (
        f"{8 * ' '}Wait stores pending 0\n{8 * ' '}Barrier\n",
        f"{8 * ' '}Wait stores pending 0\n",
        {"TL404"},
    ),
    "no fence before the store": (f"{8 * ' '}Fence async\n", "", {"TL412"}),
    "the fence behind the barrier": (
        f"{8 * ' '}Fence async\n{8 * ' '}Barrier\n",
        f"{8 * ' '}Barrier\n{8 * ' '}Fence async\n",
        {"TL412"},
    ),
    "no barrier before the store": (
        f"{8 * ' '}Fence async\n{8 * ' '}Barrier\n",
        f"{8 * ' '}Fence async\n",
        {"TL403"},
    ),
    "a store on its way at the end": (
        f"{4 * ' '}end\n{4 * ' '}Wait stores pending 0",
        f"{4 * ' '}end",
        {"TL404"},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_reported_at_a_line(fault):
    old, new, codes = FAULTS[fault]
    text = "\n".join(statements_of(h200("gqa_h200_scheduled")))
    assert text.count(old) == 1
    text = text.replace(old, new)
    with pytest.raises(DiagnosticError) as error:
        check_text(text)
    found = [d for d in error.value.diagnostics if d.severity == "error"]
    assert {d.code for d in found} & codes, [d.render(text) for d in found]
    assert all(d.span.line > 0 and d.hint for d in found)
    checked = check_text(text, model=False)[0]
    for seed in range(4):
        sizes = {"B": 1, "Sq": 390, "Sk": 250, "Hq": 1, "Hk": 1}
        with pytest.raises(DiagnosticError) as error:
            interpret(checked, sizes, qkv(np.random.default_rng(1), sizes), {"scale": 0.3}, seed=seed)
        assert error.value.diagnostics[0].code in codes, error.value.diagnostics[0].render(text)


# ------------------------------------------------------------------ rules that the programs stand on

LIST_LOOP = "for j = 0 : n\n    Copy K (BN, D) in coordinate [batch, k = List[batch, block, j] * BN,"


def guards(text):
    checked = check_text(text, model=False)[0]
    printed = print_program(type(parse(text))((checked.kernel,)))
    return [line.strip() for line in printed.splitlines() if line.strip().startswith("if") and ">= 0" in line]


def block_list():
    return "\n".join(statements_of(text_of("block_list")))


def test_a_list_element_is_guarded_once():
    assert guards(block_list()) == ["if List[batch, block, j] >= 0"]


def test_a_list_element_is_found_through_let():
    named = LIST_LOOP.replace("List[batch, block, j]", "tile").replace("\n", "\n    Let tile = List[batch, block, j]\n")
    text = block_list().replace(LIST_LOOP, named)
    assert guards(text) == ["if tile >= 0"]


def test_a_guard_that_the_author_wrote_stays_the_only_one():
    head, _, rest = block_list().partition("for j = 0 : n\n")
    body, _, tail = rest.partition("end\n")
    inside = "".join(f"    {line}\n" for line in body.splitlines())
    text = f"{head}for j = 0 : n\n    if List[batch, block, j] >= 0\n{inside}end\n{tail}"
    assert guards(text) == ["if List[batch, block, j] >= 0"]


def test_a_page_table_is_no_list():
    assert guards(text_of("paged")) == []


REFUSED = {
    "an asynchronous GEMM on an A100": ("gqa_h200_scheduled", "for h200", "for a100", "TL504"),
    "8-bit tiles on an A100": ("fp8", "for h200", "for a100", "TL504"),
    "bf16 tiles on a T4": ("sigmoid", "for a100", "for t4", "TL504"),
    "more registers than an SM has": ("gqa_h200_scheduled", "registers 24\n", "registers 40\n", "TL502"),
    "contiguous along an axis it lacks": ("fp8", "contiguous k", "contiguous q", "TL503"),
    "contiguous in global memory": ("fp8", "D) e4m3\n", "D) e4m3 contiguous D\n", "TL207"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_target_cannot_do_is_refused(what):
    name, old, new, code = REFUSED[what]
    assert old in text_of(name)
    with pytest.raises(DiagnosticError) as error:
        check_text(text_of(name).replace(old, new))
    assert code in {d.code for d in error.value.diagnostics}


def test_an_axis_without_a_place_is_no_index():
    """Without a key no Copy runs, so that nothing says where n lies."""
    text = text_of("gemm_epilogue").replace("C + bias", "C + n")
    for old, new in CASES["gemm_epilogue"].smaller:
        text = text.replace(old, new)
    sizes = {"M": 4, "N": 4, "K": 0}
    x = layer(np.random.default_rng(0), sizes)
    with pytest.raises(DiagnosticError) as error:
        interpret(check_text(text)[0], sizes, x)
    assert error.value.diagnostics[0].code == "TL105"


RAGGED = """Kernel sums for a100
Size Sk
Tile BM = 16, BN = 16
Size D = 16
Grid block = 0 : 1
Allocate Q in global (BM, D) bf16
Allocate K in global (Sk, D) bf16
Allocate Out in global (BM) f32
Allocate l in register (BM q) f32 = 0
Copy Q (BM, D) in coordinate [q = 0] from global to shared
for i = 0 : ceildiv(Sk + 5, BN)
    Copy K (BN, D) in coordinate [k = i * BN - 5] from global to shared
    Compute GEMM Q, K.T and get S
    Compute Mask S where k < Sk and k >= 0 else 0
    Compute l + RowSum(exp2(S) - 1) and get new l
end
Copy l (BM) in coordinate [q = 0] from register to global Out
"""


@pytest.mark.parametrize("forgotten", [" and k >= 0", "k < Sk and "])
def test_a_tile_may_begin_before_its_tensor_if_both_ends_are_masked(forgotten):
    check_text(RAGGED)
    with pytest.raises(DiagnosticError) as error:
        check_text(RAGGED.replace(forgotten, ""))
    assert {d.code for d in error.value.diagnostics} == {"TL205"}
