"""A user's own function beside a description: do they agree, what is refused by name, and what a verdict says."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qimeng_attention.errors import JudgeError, SpecError
from qimeng_attention.judge import OwnFunction, agree, judge_program, open_reference
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.numerics import Array
from qimeng_attention.workflow import generate, run
from qimeng_attention.workflow.judgement import agreeing

SPEC = AttentionSpec.make(Hq=4, Hk=2, Dqk=32, mask="window:5", softcap=20.0)
BIASED = AttentionSpec.make(
    Hq=4,
    Hk=2,
    Dqk=32,
    mask="causal",
    score="score + slopes[h] * table[N - 1] * (doc[b, kv_idx] % 3)",
    tensors={
        "slopes": {"dims": ["Hq"], "dtype": "f32"},
        "table": {"dims": ["N"], "dtype": "bf16"},
        "doc": {"dims": ["B", "Sk"], "dtype": "i64"},
    },
)


def weighed(scores: Array, seen: Array, v: Array) -> tuple[Array, Array]:
    scores = np.where(seen, scores, -np.inf)
    top = np.maximum(scores.max(axis=-1, keepdims=True), -1e300)
    weights = np.exp(scores - top)
    total = weights.sum(axis=-1, keepdims=True)
    with np.errstate(all="ignore"):
        return np.einsum("bhqk,bkhd->bqhd", weights / total, v), (top + np.log(total))[..., 0]


def scored(q: Array, k: Array, scale: float) -> Array:
    return scale * np.einsum("bqhd,bkhd->bhqk", q, np.repeat(k, q.shape[2] // k.shape[2], axis=2))


def places(q: Array, k: Array) -> tuple[Array, Array]:
    return np.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1], np.arange(k.shape[1])[None]


def attention(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
    """What SPEC describes; a row without a key gets NaN, as PyTorch's softmax gives."""
    rows, keys = places(q, k)
    seen = (keys <= rows) & (keys >= rows - 5)
    return weighed(20 * np.tanh(scored(q, k, scale) / 20), seen, np.repeat(v, 2, axis=2))


def alone(q: Array, k: Array, v: Array, scale: float) -> Array:
    return attention(q, k, v, scale)[0]


def by_name(Q: Array, K: Array, V: Array, scale: float, Hq: int, Dqk: int, **_: Any) -> dict[str, Array]:
    assert (Q.shape[2:], Q.dtype) == ((Hq, Dqk), np.float64)
    out, lse = attention(Q, K, V, scale)
    return {"Out": out, "Lse": lse}


def agreed(function: Callable[..., Any], spec: AttentionSpec = SPEC) -> Any:
    with open_reference(function) as opened:
        return agree(OwnFunction(opened, spec), seed=1)


# ------------------------------------------------------------------ functions that agree
@pytest.mark.parametrize("function", [attention, alone, by_name])
def test_a_function_that_computes_the_same_agrees(function: Any) -> None:
    found = agreed(function)

    assert found.precision == "float64"
    assert found.worst < 1e-12
    assert found.cases >= 20
    assert "agrees with the description" in str(found)


def test_one_that_rounds_to_float32_agrees_and_it_is_said() -> None:
    found = agreed(lambda q, k, v, scale: alone(q.astype(np.float32), k.astype(np.float32), v, scale).astype(float))

    assert (found.precision, "it rounds to float32" in str(found)) == ("float32", True)


def test_named_tensors_and_sizes_come_by_name() -> None:
    def biased(q: Array, k: Array, v: Array, slopes: Array, table: Array, doc: Array, scale: float, N: int) -> Any:
        assert (slopes.dtype, table.dtype, doc.dtype, table.shape) == (np.float64, np.float64, np.int64, (N,))
        rows, keys = places(q, k)
        bias = slopes[None, :, None, None] * table[-1] * (doc % 3)[:, None, None, :]
        return weighed(scored(q, k, scale) + bias, keys <= rows, np.repeat(v, q.shape[2] // v.shape[2], axis=2))

    assert agreed(biased, BIASED).precision == "float64"


def test_pytorch_s_functions_get_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch: make test, or pip install 'qimeng-attention[gpu]'")

    def sdpa(q: Any, k: Any, v: Any, scale: float) -> Any:
        assert (q.dtype, q.device.type) == (torch.float64, "cpu")
        found = torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)), scale=scale, enable_gqa=True
        )
        return found.transpose(1, 2)

    spec = AttentionSpec.make(Hq=4, Hk=2, Dqk=32)
    (tmp_path / "mine.py").write_text(
        "import torch\n\ndef attention(q, k, v, scale):\n    x = [t.transpose(1, 2) for t in (q, k, v)]\n"
        "    f = torch.nn.functional.scaled_dot_product_attention\n"
        "    return f(*x, scale=scale, enable_gqa=True).transpose(1, 2)\n"
    )

    with open_reference(sdpa, "torch") as opened:
        assert agree(OwnFunction(opened, spec), seed=1).precision == "float64"
    with open_reference(f"{tmp_path / 'mine.py'}:attention") as opened:
        assert opened.framework == "torch"
        assert agree(OwnFunction(opened, spec), seed=1).precision == "float64"


# ------------------------------------------------------------------ functions that differ
def test_the_first_difference_is_shown_with_both_values_and_a_likely_reason() -> None:
    def uncapped(q: Array, k: Array, v: Array, scale: float) -> Array:
        rows, keys = places(q, k)
        return weighed(scored(q, k, scale), (keys <= rows) & (keys >= rows - 5), np.repeat(v, 2, axis=2))[0]

    place, number = r"out\[\d+, \d+, \d+, \d+\]", r"[-\d.e]+"
    shown = rf"{place} is {number}, the description gives {number} \(\d+ of \d+ elements differ; "
    with pytest.raises(JudgeError, match=f"uncapped differs from the description: {shown}") as caught:
        agreed(uncapped)
    assert caught.value.hint == "it gives what the description would without this: softcap 20"


@pytest.mark.parametrize(
    ("left", "shift", "hint"),
    [
        (4, 0, "with 4 in the place of 5 in its mask"),
        (6, 0, "with 6 in the place of 5 in its mask"),
        (99, 0, "without this: mask: kv_idx >= q_idx + Sk - Sq - 5"),
        (5, 1, "correct one of the two"),
    ],
)
def test_a_mask_that_differs_is_found(left: int, shift: int, hint: str) -> None:
    def masked(q: Array, k: Array, v: Array, scale: float) -> Array:
        rows, keys = places(q, k)
        seen = (keys <= rows + shift) & (keys >= rows - left)
        return weighed(20 * np.tanh(scored(q, k, scale) / 20), seen, np.repeat(v, 2, axis=2))[0]

    with pytest.raises(JudgeError, match=r"differs from the description|shows the row no key") as caught:
        agreed(masked)
    assert hint in caught.value.hint or shift


def test_an_lse_in_another_base_differs() -> None:
    def base_two(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
        out, lse = attention(q, k, v, scale)
        return out, lse / np.log(2)

    with pytest.raises(JudgeError, match=r"differs from the description: lse\["):
        agreed(base_two)


# ------------------------------------------------------------------ functions that are refused by name
WRONG: dict[str, tuple[Callable[..., Any], str]] = {
    "raises": (lambda q, k, v: 1 / 0, "raises ZeroDivisionError: division by zero"),
    "exits": (lambda q, k, v: os.sys.exit(3), "exits the process (exit code 3)"),
    "mutates": (lambda q, k, v: np.add(q, 1, out=q), "changes its input q"),
    "random": (lambda q, k, v: q + np.random.default_rng().random(), "gives other numbers when it is called again"),
    "constant": (lambda q, k, v: np.ones(q.shape), "gives the same out whatever q is"),
    "without v": (lambda q, k, v, scale: alone(q, k, k * 2, scale), "gives the same out whatever v is"),
    "NaN": (lambda q, k, v, scale: alone(q, k, v, scale) * np.nan, "gives nan at out[0, 0, 0, 0]"),
    "Inf": (lambda q, k, v, scale: alone(q, k, v, scale) + np.inf, "gives inf at out[0, 0, 0, 0]"),
    "shape": (lambda q, k, v: q[:, :, :1], "gives out of shape (1, "),
    "dtype": (lambda q, k, v, scale: alone(q, k, v, scale).astype("f4"), "gives out in float32, expected float64"),
    "no array": (lambda q, k, v: "done", "gives a str, expected an array"),
    "nothing": (lambda q, k, v: None, "gives a NoneType, expected an array"),
    "unknown": (lambda query, k, v: k, "asks for query, which a call does not have"),
    "by place": (eval("lambda q, /, k, v: q"), "takes q by its place"),
    "no out": (lambda q, k, v: {"result": q}, "gives result, and no out"),
    "lse": (lambda q, k, v, scale: (alone(q, k, v, scale), q), "gives lse of shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_a_function_does_wrong_is_named(name: str) -> None:
    function, says = WRONG[name]

    with pytest.raises(JudgeError) as caught:
        agreed(function)
    assert says in caught.value.message
    assert caught.value.hint


def test_a_row_without_a_key_may_give_nothing_but_0_or_nan() -> None:
    def means(q: Array, k: Array, v: Array, scale: float) -> Array:
        out = alone(q, k, v, scale)
        return np.where(np.isnan(out), 1.0, out)

    with pytest.raises(JudgeError, match="where the description shows the row no key"):
        agreed(means)


# ------------------------------------------------------------------ a process of its own
HEAD = "import os, sys, time\nimport numpy as np\n\ndef attention(q, k, v, scale):\n    "


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("os._exit(3)", "ends its process: exit code 3"),
        ("os.abort()", "ends its process: signal SIGABRT"),
        ("sys.exit('bye')", "exits the process (exit code bye)"),
        ("time.sleep(600)", "gives nothing within 3 s"),
        ("return np.ones(1 << 40)", "needs more memory than it may have"),
        ("raise KeyError(os.environ.get('SOME_API_KEY'))", "raises KeyError: None"),
        ("print(input())", "raises EOFError"),
        ("q[:] = 0; return q", "changes its input q"),
    ],
)
def test_it_cannot_harm_this_process(body: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "secret")
    (tmp_path / "mine.py").write_text(HEAD + body + "\n")
    q = np.ones((1, 2, 1, 4))

    with (
        open_reference(f"{tmp_path / 'mine.py'}:attention", timeout_s=3 if "sleep" in body else 60) as function,
        pytest.raises(JudgeError) as caught,
    ):
        function(q=q, k=q, v=q, scale=1.0)
    assert says in caught.value.message
    assert caught.value.message.startswith("attention ")


def test_after_a_hang_it_starts_anew(tmp_path: Path) -> None:
    hang = "os.path.exists('hung') or (open('hung', 'w').close(), time.sleep(600))\n    return q * scale"
    (tmp_path / "mine.py").write_text(HEAD + hang + "\n")

    with open_reference(f"{tmp_path / 'mine.py'}:attention", timeout_s=3) as function:
        with pytest.raises(JudgeError, match="gives nothing within"):
            function(q=np.ones(2), k=np.ones(1), v=np.ones(1), scale=3.0)
        assert function(q=np.ones(2), k=np.ones(1), v=np.ones(1), scale=3.0)["0"].tolist() == [3, 3]


def test_what_it_prints_is_no_answer(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("FACTOR = 2.0\n")
    text = "from helper import FACTOR\nprint('loading')\n\ndef attention(q):\n    print('{}')\n    return FACTOR * q\n"
    (tmp_path / "mine.py").write_text(text)

    with open_reference(f"{tmp_path / 'mine.py'}:attention") as function:
        assert function(q=np.ones(1))["0"].tolist() == [2]


def test_a_framework_that_is_none_is_named() -> None:
    with pytest.raises(JudgeError, match="no framework 'jax'"):
        open_reference(alone, "jax")


# ------------------------------------------------------------------ verdicts
def small() -> tuple[AttentionSpec, Any]:
    spec = AttentionSpec.make(Hq=4, Hk=2, Dqk=32, mask="window:5", softcap=20.0)
    return spec, run(spec, target="A100", judge=False, until="scheduled").results


def test_a_program_is_judged_against_both() -> None:
    spec, results = small()
    with agreeing(attention, spec) as own:
        verdict = judge_program(results.kernels, spec, seed=2, own=own)

    assert verdict.verdict == "accepted", verdict.reason
    assert any(c.case.endswith(", against attention") for c in verdict.checks)
    assert verdict.reference is not None
    assert (verdict.reference["name"], verdict.reference["framework"]) == ("attention", "numpy")
    assert verdict.reference["agreement"]["precision"] == "float64"


def test_a_wrong_program_is_rejected_by_the_function_first() -> None:
    spec, results = small()
    programs = check_text(results.code.replace("- 5", "- 6"), model=False)
    with agreeing(attention, spec) as own:
        verdict = judge_program(programs, spec, seed=2, own=own)

    assert verdict.verdict == "rejected"
    assert ", against attention: " in verdict.reason


def test_a_function_that_differs_at_length_alone_is_no_fault_of_the_program() -> None:
    def short(q: Array, k: Array, v: Array, scale: float) -> tuple[Array, Array]:
        out, lse = attention(q, k, v, scale)
        return (out * 1.5 if k.shape[1] > 3000 else out), lse

    spec, results = small()
    with agreeing(short, spec) as own, pytest.raises(JudgeError, match="short differs from the description"):
        judge_program(results.kernels, spec, seed=2, own=own)


def test_a_function_needs_a_description() -> None:
    with pytest.raises(SpecError, match="stands beside a description"), agreeing(attention, None):
        pass


def test_generate_takes_a_function_and_raises_what_differs(tmp_path: Path) -> None:
    with pytest.raises(JudgeError, match="alone differs from the description"):
        generate(SPEC.model_copy(update={"softcap": 10.0}), target="A100", out=tmp_path / "b", reference=alone)

    assert not (tmp_path / "b").exists()
