"""Operators without a spec: a person's TL against a person's NumPy function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from judge.programs import CODE, TANH_MEAN, edit
from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import Verdict, judge_function, open_reference
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.numerics import Array

SIZES = [{"B": 2, "Sq": 65, "Sk": 129, "Hq": 4, "Hk": 2}, {"B": 1, "Sq": 70, "Sk": 3, "Hq": 2, "Hk": 1}]
PROGRAM = check_text(TANH_MEAN)[0]


def tanh_mean(Q: Array, K: Array, V: Array, scale: float) -> Array:
    """Weights are tanh(score), averaged over the visible keys."""
    (_, rows, heads, _), (keys, key_heads) = Q.shape, K.shape[1:3]
    k, v = (np.repeat(a, heads // key_heads, axis=2) for a in (K, V))
    seen = np.arange(keys)[None, :] <= np.arange(rows)[:, None] + keys - rows
    weights = np.where(seen, np.tanh(scale * np.einsum("bqhd,bkhd->bhqk", Q, k)), 0)
    return np.einsum("bhqk,bkhd->bqhd", weights / np.maximum(1, seen.sum(axis=1, keepdims=True)), v)


def judged(text: str, function: Any = tanh_mean) -> Verdict:
    return judge_function(check_text(text)[0], function, seed=3, sizes=SIZES)


def test_a_new_operator_comes_to_a_verdict() -> None:
    verdict = judge_function(PROGRAM, tanh_mean, seed=3)

    assert verdict.verdict == "accepted", verdict.reason
    assert len({c.case for c in verdict.checks}) >= 20
    assert {c.name for c in verdict.clauses} == {f"the outputs depend on {n}" for n in "QKV"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Compute tanh(S * scale)", "Compute tanh(S * scale * 1.05)"),
        ("Compute tanh(S * scale)", "Compute sigmoid(S * scale)"),
        ("O / n)", "O / (n + 1))"),
        ("k = i * BN, head // (Hq // Hk)]", "k = i * BN, head % Hk]"),
        ("where(n == 0, 0, O / n)", "O / n"),
        ("Mask C where k <= q + Sk - Sq and", "Mask C where k < q + Sk - Sq and"),
    ],
)
def test_a_wrong_program_is_rejected(old: str, new: str) -> None:
    assert judged(edit(TANH_MEAN, (old, new))).verdict == "rejected"


def test_a_program_that_faults_is_rejected_with_its_diagnostic() -> None:
    text = edit(TANH_MEAN, ("Mask S where k <= q + Sk - Sq and k < Sk", "Mask S where k + 5 > 0"))

    verdict = judge_function(check_text(text, model=False)[0], tanh_mean, sizes=SIZES)

    assert verdict.verdict == "rejected"
    assert verdict.worst is not None
    assert [d["code"] for d in verdict.worst.diagnostics] == ["TL205"]


def test_outputs_may_come_by_name_with_magnitudes() -> None:
    def full(Q: Array, K: Array, V: Array, scale: float, Hq: int, Hk: int, **_: Any) -> dict[str, Array]:
        k, v = (np.repeat(a, Hq // Hk, axis=2) for a in (K, V))
        scores = scale * np.einsum("bqhd,bkhd->bhqk", Q, k)
        rows, keys = scores.shape[2:]
        scores = np.where(np.arange(keys)[None] <= np.arange(rows)[:, None] + keys - rows, scores, -np.inf)
        top = np.maximum(scores.max(axis=-1, keepdims=True), -1e300)
        weights = np.exp(scores - top)
        total = weights.sum(axis=-1, keepdims=True)
        weights = np.divide(weights, total, where=total > 0, out=np.zeros_like(weights))
        lse = np.where(total > 0, top + np.log(np.where(total > 0, total, 1)), -np.inf)[..., 0]
        out, most = (np.einsum("bhqk,bkhd->bqhd", weights, a) for a in (v, np.abs(v)))
        return {"Out": out, "Out_magnitude": most, "Lse": lse}

    assert judged(CODE, full).verdict == "accepted"


def test_an_input_that_does_not_matter_makes_the_verdict_inconclusive() -> None:
    text = edit(TANH_MEAN, ("Compute tanh(S * scale)", "Compute tanh(S * 0)"))

    verdict = judged(text, lambda Q, V: np.zeros((*Q.shape[:3], V.shape[3])))

    assert verdict.verdict == "inconclusive"
    assert "the outputs depend on Q" in verdict.reason


def raises(Q: Array) -> Array:
    raise RuntimeError("no idea")


def wrong_shape(Q: Array) -> Array:
    return Q[:1, :3]


def not_a_number(Q: Array) -> Array:
    return np.full(Q.shape, np.nan)


def mutating(Q: Array, K: Array) -> Array:
    K += 1
    return Q


def random(Q: Array) -> Array:
    return Q + np.random.default_rng().random()


def misspelt(Q: Array, sclae: float) -> Array:
    return Q


def renamed(Q: Array) -> dict[str, Array]:
    return {"Output": Q}


def no_array(Q: Array) -> Any:
    return "done"


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (raises, "raises raises RuntimeError: no idea"),
        (wrong_shape, "of shape (1, 3, 4, 64), expected (2, 65, 4, 64)"),
        (not_a_number, "gives NaN at Out[0, 0, 0, 0]"),
        (mutating, "mutating changes its input K"),
        (random, "other numbers when it is called again"),
        (misspelt, "asks for sclae"),
        (renamed, "gives no Out"),
        (no_array, "expected an array"),
    ],
)
def test_what_the_function_does_wrong_is_named(function: Any, says: str) -> None:
    with pytest.raises(JudgeError) as caught:
        judge_function(PROGRAM, function, sizes=SIZES)

    assert says in caught.value.message
    assert caught.value.hint


def test_a_function_is_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "ref.py"
    file.write_text("def attention(Q):\n    return Q\n")

    with open_reference(f"{file}:attention") as function:
        assert function(Q=np.arange(3.0))["0"].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("", "nowhere.py:f", "names no function in a file"),
        ("", "{file}", "names no function in a file"),
        ("def attention(Q): ...", "{file}:atention", "has no function atention"),
        ("import nothing_of_this_name", "{file}:f", "fails when it is loaded: ModuleNotFoundError"),
        ("def f(:", "{file}:f", "fails when it is loaded: SyntaxError"),
    ],
)
def test_a_file_that_holds_no_function_is_a_judge_error(text: str, place: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "ref.py"
    file.write_text(text)

    with pytest.raises(JudgeError) as caught:
        open_reference(place.format(file=file))

    assert says in caught.value.message
    assert caught.value.hint


# ------------------------------------------------------------------ weights that the GPU's softplus loses

SHARE = """
Kernel parts_of_softplus for l40s
Size B, Sq, Sk, Hq, Hk, D = 64
Tile BM = 64, BN = 64
Scalar scale f32 > 0
Grid block = 0 : ceildiv(Sq, BM), head = 0 : Hq, batch = 0 : B

Allocate Q in global (B, Sq, Hq, D) bf16
Allocate K in global (B, Sk, Hk, D) bf16
Allocate V in global (B, Sk, Hk, D) bf16
Allocate Out in global (B, Sq, Hq, D) bf16

Let head_k = head // (Hq // Hk)

Allocate L in register (BM q) f32 = 0
Allocate O in register (BM q, D) f32 = 0

Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared

for i = 0 : ceildiv(Sk, BN)
    Copy K (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared
    Copy V (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared
    Compute GEMM Q, K.T and get S
    Compute S * scale and get new S
    Compute softplus(S) and get W
    Compute Mask W where k < Sk else 0
    Compute RowSum(W) and get R
    Compute L + R and get new L
    Reshape W from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    Compute GEMM P, V and accumulate O

Compute where(L > 0, O / L, 0) and get new O
Copy O (BM, D) in coordinate [batch, q = block * BM, head] from register to global Out

Schedule
    warps 4 along q, 2 blocks an SM
"""

ONE_KEY = [{"B": 2, "Sq": 64, "Sk": 1, "Hq": 8, "Hk": 2}] * 4  # four scales are drawn; under 0.06 few scores reach -17


def parts_of_softplus(Q: Array, K: Array, V: Array, scale: float) -> dict[str, Array]:
    """Every key weighs its part of the softplus sum of the scores."""
    k, v = (np.repeat(a, Q.shape[2] // K.shape[2], axis=2) for a in (K, V))
    weights = np.logaddexp(0, scale * np.einsum("bqhd,bkhd->bhqk", Q, k))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    out, most = (np.einsum("bhqk,bkhd->bqhd", weights, a) for a in (v, np.abs(v)))
    return {"Out": out, "Out_magnitude": most}


@pytest.mark.parametrize("seed", range(4))
def test_a_share_of_softplus_that_the_gpu_rounds_to_nothing_is_rejected_here_too(seed: int) -> None:
    verdict = judge_function(check_text(SHARE)[0], parts_of_softplus, seed=seed, sizes=ONE_KEY)

    assert verdict.verdict == "rejected"
    assert "large first input" in verdict.reason
    assert " is 0, expected " in verdict.reason


@pytest.mark.parametrize("seed", range(4))
def test_a_share_of_softplus_by_its_tail_is_accepted(seed: int) -> None:
    text = edit(SHARE, ("Compute softplus(S)", "Compute where(S < -8, exp(S), softplus(S))"))

    verdict = judge_function(check_text(text)[0], parts_of_softplus, seed=seed)

    assert verdict.verdict == "accepted", verdict.reason
