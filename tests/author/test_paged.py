"""Programs for few queries over caches, with lengths of entries and keys in pages; faults that the judge must find."""

from __future__ import annotations

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import build
from qimeng_attention.errors import DiagnosticError, JudgeError, SpecError
from qimeng_attention.judge import judge_program
from qimeng_attention.judge.inputs import Budget
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.interpreter import interpret_program
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.translate import translate

SMALL = Budget("small", heads=4, keys=200, scores=1 << 16, thorough=False, failures=2)
PAGED, LENGTHS = {"page_size": 16}, {"seqused_k": True}


def spec_of(**fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Sq": 1, "Hq": 4, "Hk": 2, "Dqk": 64, "dtype": "fp16", **fields})


def code_of(target: str = "A100", **fields: object) -> str:
    return plan(spec_of(**fields), targets.get(target)).code


def judged(text: str, **fields: object) -> str:
    """Give the verdict, or the code of the diagnostic that came first."""
    try:
        verdict = judge_program(check_text(text, target="A100"), spec_of(**fields), seed=3, budget=SMALL)
    except (DiagnosticError, JudgeError) as refused:
        return str(refused)
    return verdict.verdict


@pytest.mark.parametrize(
    "fields",
    [
        {"page_size": 1},
        {"page_size": 16, "mask": "causal", "Sq": 3},
        {"page_size": 64, "Hk": 4},
        {"page_size": 128, "mask": "window:40", "Sq": 2},
        {"page_size": 256, "softcap": 5.0, "Hk": 1},
        {"seqused_k": True},
        {"seqused_k": True, "mask": "causal", "Sq": 4, "Dqk": 96, "Dv": 64},
        {"page_size": 16, "score": "score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)"},
        {"page_size": 16, "mask": "kv_idx >= first[b]", "tensors": {"first": {"dims": ["B"], "dtype": "i32"}}},
        {"seqused_k": True, "mask": "doc[b, kv_idx] == 1", "tensors": {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}}},
    ],
    ids=str,
)
def test_the_judge_accepts_programs_over_caches(fields: dict[str, object]) -> None:
    text = print_program(schedule(parse(code_of(**fields)), target="A100"))

    assert judged(text, **fields) == "accepted"


@pytest.mark.parametrize("target", ["T4", "A100", "H200"])
@pytest.mark.parametrize("fields", [PAGED, LENGTHS, {"page_size": 256, "Dqk": 192, "Dv": 128}], ids=str)
def test_every_target_has_a_lowering(target: str, fields: dict[str, object]) -> None:
    first, _ = translate(schedule(parse(code_of(target, **fields)), target=target), target=target)

    assert ("tl::gather" in first.source) == ("page_size" in fields)
    assert "length" in first.source


@pytest.mark.parametrize(
    ("target", "fields", "lines"),
    [
        ("H200", {"Hq": 64, "Hk": 8}, ("BM = 32", "stages 2", "warps 2 along h, 3 blocks an SM")),
        ("A100", {"Hq": 64, "Hk": 8}, ("BM = 32", "stages 2", "warps 2 along h, 2 blocks an SM")),
        ("A100", {"Hq": 64, "Hk": 8, "Dqk": 256}, ("BM = 32", "stages 2", "warps 2 along h, 1 blocks an SM")),
        ("H200", {"Hq": 33, "Hk": 1}, ("BM = 64", "stages 4", "warps 4 along h, 1 blocks an SM")),
        ("T4", {"Hq": 64, "Hk": 8}, ("BM = 64", "stages 1", "warps 4 along h, 1 blocks an SM")),
    ],
    ids=str,
)
def test_few_rows_leave_room_for_several_blocks(target: str, fields: dict[str, int], lines: tuple[str, ...]) -> None:
    text = code_of(target, **{"Dqk": 128, **PAGED, **fields})

    assert all(line in text for line in lines)


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("target", "counts"),
    [("T4", {"LDG": 8 + 4}), ("A100", {"LDGSTS": 32, "LDG": 16}), ("H200", {"LDGSTS": 32, "LDG": 16})],
)
def test_a_gather_copies_16_bytes_at_a_time_and_looks_a_row_up_once(target: str, counts: dict[str, int]) -> None:
    """K and V have 32 rows of 256 bytes on 128 threads of a T4, 64 on 64 threads elsewhere."""
    first, _ = translate(schedule(parse(code_of(target, Dqk=128, **PAGED)), target=target), target=target)
    facts = {"threads": first.threads, "shared_bytes": first.shared_bytes, "target": first.target}
    report = build(first.source, name=first.name, arch=first.target.arch, **facts).report

    (loop,) = [loop for loop in report.loops if loop.counts.get("HMMA")]
    assert {name: loop.counts.get(name, 0) for name in counts} == counts
    assert report.spill_store_bytes == 0


@pytest.mark.parametrize("fields", [PAGED, {"page_size": 256}, LENGTHS], ids=str)
def test_the_checker_runs_loops_that_end_at_a_length(fields: dict[str, object]) -> None:
    text = print_program(schedule(parse(code_of(**fields)), target="A100"))
    barrier = "    Wait copies pending 2\n    Barrier\n"
    assert barrier in text

    with pytest.raises(DiagnosticError) as refused:
        check_text(text.replace(barrier, "    Wait copies pending 2\n", 1), target="A100")

    assert [d.code for d in refused.value.diagnostics] == ["TL403"]


FAULTS = {
    "the length is ignored": (PAGED, "clamp(SequsedK[batch], 0, MaxPages * Page)", "MaxPages * Page"),
    "the length of another entry": (PAGED, "SequsedK[batch]", "SequsedK[0]"),
    "a length beyond the cache": (PAGED, "clamp(SequsedK[batch], 0, MaxPages * Page)", "SequsedK[batch]"),
    "the next page": (PAGED, "PageTable[batch, k // Page]", "PageTable[batch, k // Page + 1]"),
    "the table's row of another entry": (PAGED, "PageTable[batch,", "PageTable[0,"),
    "pages are half as long": (PAGED, "at k % Page", "at k % (Page // 2)"),
    "pages are twice as long": (PAGED, "k // Page]", "k // (2 * Page)]"),
    "pages in order": (PAGED, "PageTable[batch, k // Page]", "batch * MaxPages + k // Page"),
    "values past the end": (PAGED, "Copy V (BN, D) in coordinate [PageTable[batch, k // Page], k = i * BN : length at",
                            "Copy V (BN, D) in coordinate [PageTable[batch, k // Page], k = i * BN at"),
    "one key too many": (PAGED, "clamp(SequsedK[batch], 0,", "clamp(SequsedK[batch] + 1, 0,"),
    "the last tile is left out": (PAGED, "ceildiv(length, BN)", "length // BN"),
    "dense: the length is ignored": (LENGTHS, "clamp(SequsedK[batch], 0, Sk)", "Sk"),
    "dense: values past the end": (LENGTHS, "Copy V (BN, D) in coordinate [batch, k = i * BN : length,",
                                   "Copy V (BN, D) in coordinate [batch, k = i * BN,"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_rejected_or_refused(fault: str) -> None:
    fields, old, new = FAULTS[fault]
    text = code_of(**fields)
    assert old in text

    found = judged(text.replace(old, new), **fields)

    assert found not in ("accepted", "inconclusive"), found


def run(lengths: list[int], table: list[list[int]], pages: int = 5) -> dict[str, np.ndarray]:
    """Run a paged program, pages of 16, on given lengths and pages; keys of page p are p + 1, values too."""
    kernels = check_text(print_program(schedule(parse(code_of(**PAGED)), target="A100")), target="A100")
    sizes = {"B": len(lengths), "Pages": pages, "MaxPages": len(table[0]), "Hk": 2, "Splits": 2}
    content = np.broadcast_to(np.arange(1, pages + 1, dtype=np.float32)[:, None, None, None], (pages, 16, 2, 64))
    inputs = {
        "Q": np.zeros((len(lengths), 1, 4, 64), np.float32),
        "K": content,
        "V": content,
        "SequsedK": np.array(lengths),
        "PageTable": np.array(table),
    }
    return interpret_program(kernels, sizes, inputs, {"scale": 0.1}, seed=1)


@pytest.mark.parametrize("length", [0, -1, -(1 << 31)])
def test_an_entry_without_keys_gives_nothing(length: int) -> None:
    given = run([length, 16], [[99, -7], [2, 99]])

    assert not given["Out"][0].any()
    assert np.isneginf(given["Lse"][0]).all()
    np.testing.assert_allclose(given["Out"][1], 3, rtol=1e-3)


@pytest.mark.parametrize("length", [33, 48, (1 << 31) - 1])
def test_a_length_beyond_the_table_counts_as_what_the_table_holds(length: int) -> None:
    given = run([length], [[0, 2]])

    np.testing.assert_allclose(given["Out"], 2, rtol=1e-3)  # the mean of pages 0 and 2
    np.testing.assert_allclose(given["Lse"], np.log(32), rtol=1e-5)


@pytest.mark.parametrize("page", [-1, 5, 6, (1 << 31) - 1, -(1 << 31)])
def test_a_page_outside_of_the_cache_reads_as_zeros(page: int) -> None:
    given = run([32], [[3, page]])

    np.testing.assert_allclose(given["Out"], 2, rtol=1e-3)  # half of the keys have the value 4, half 0
    np.testing.assert_allclose(given["Lse"], np.log(32), rtol=1e-5)


@pytest.mark.parametrize(
    ("fields", "field", "nearest"),
    [
        ({"page_size": 24}, "page_size", 16),
        ({"page_size": 512}, "page_size", 256),
        ({"page_size": 0}, "page_size", 1),
        ({"page_size": 16, "Sk": 64}, "Sk", None),
        ({"page_size": 16, "tensors": {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}}}, "tensors", None),
        ({"page_size": 16, "Sq": None}, "Sq", None),
        ({"seqused_k": True, "Sq": 17}, "Sq", None),
        ({"seqused_k": True, "Hq": 130, "Hk": 2}, "Hq", None),
        ({"seqused_k": True, "Dqk": 72}, "Dqk", None),
        ({"seqused_k": True, "Dv": 72}, "Dv", None),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_by_name(fields: dict[str, object], field: str, nearest: int | None) -> None:
    with pytest.raises(SpecError) as refused:
        code_of(**fields)

    assert refused.value.details["field"] == field
    assert nearest is None or refused.value.details["nearest"] == nearest
