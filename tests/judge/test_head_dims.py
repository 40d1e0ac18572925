"""Head dims that are no multiple of a tile's step, judged: the planner's programs, scheduled, and planted faults."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.judge import CPU, judge_program
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse

FEW = replace(CPU, keys=130, scores=150_000, heads=1)
DIMS = [(d, d) for d in (32, 40, 72, 96, 128, 136, 192, 256)] + [(192, 128), (64, 128), (96, 32)]


def asked(dqk: int, dv: int = 0, **fields: object) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 4, "Hk": 2, "Dqk": dqk, "Dv": dv or dqk, "mask": "causal", **fields})


def code_of(spec: AttentionSpec, target: str) -> str:
    return plan(spec, targets.get(target)).code


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("target", ["A100", "H200"])
@pytest.mark.parametrize(("dqk", "dv"), DIMS)
def test_scheduled_programs_are_accepted(dqk: int, dv: int, target: str, mask: str) -> None:
    dtype = "fp16" if dqk in (72, 136) else "bf16"
    spec = asked(dqk, dv, mask=mask, dtype=dtype)
    program = schedule(parse(code_of(spec, target)))

    verdict = judge_program(check(program)[0], spec, seed=dqk, budget=FEW)

    assert verdict.verdict == "accepted", verdict.reason


FAULTS = {
    "a tile that ends before the head dim": ("Tile BD = 48", "Tile BD = 32"),
    "a tile that begins behind the first column": ("head_k, d = 0]", "head_k, d = 8]"),
    "results stored from another column on": ("head, d = 0] from register", "head, d = 8] from register"),
    "columns that a product would take in whole steps": ("Tile BD = 48", "Tile BD = 40"),
    "the whole axis in a wider tile": ("head_k, d = 0] from", "head_k] from"),
    "a limit before the last column": ("head_k, d = 0]", "head_k, d = 0 : 39]"),
}


@pytest.mark.parametrize("target", ["A100", "H200"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_of_the_width_is_refused_or_rejected(fault: str, target: str) -> None:
    old, new = FAULTS[fault]
    text = code_of(asked(40), target)
    assert old in text
    try:
        checked = check_text(text.replace(old, new))[0]
    except DiagnosticError:
        return

    assert judge_program(checked, asked(40), seed=1, budget=FEW).verdict == "rejected"


@pytest.mark.parametrize("target", ["A100", "H200"])
def test_what_lies_beyond_the_head_dim_in_memory_is_not_read(target: str) -> None:
    """The columns behind those of K and V hold NaN; a tensor that claims them, as a control, lets it through."""
    text = code_of(asked(40, Hk=4, mask="full"), target)
    random = np.random.default_rng(0)
    sizes = {"B": 1, "Sq": 9, "Sk": 11, "Hq": 4}
    wide = {n: random.standard_normal((1, s, 4, 48)).astype(np.float32) for n, s in (("Q", 9), ("K", 11), ("V", 11))}
    plain = {n: a[..., :40].copy() for n, a in wide.items()}
    for a in wide.values():
        a[..., 40:] = np.nan
    claimed = text.replace("(B, Sk, Hq, D)", "(B, Sk, Hq, BD)").replace("(B, Sq, Hq, D)", "(B, Sq, Hq, BD)")

    def out(program: str, tensors: dict[str, np.ndarray]) -> np.ndarray:
        return interpret(check_text(program, model=False)[0], sizes, tensors, {"scale": 0.2})["Out"]

    expected = out(text, plain)
    assert np.isfinite(expected).all()
    assert np.array_equal(out(text, {n: a[..., :40] for n, a in wide.items()}), expected)
    assert np.isnan(out(claimed, wide)).any()


def test_a_padded_tile_may_be_held_in_registers() -> None:
    """What a Copy left there past the head dim is 0; what is computed there is not."""
    text = code_of(asked(40), "A100").replace("    copies async", "    hold Q in register\n    copies async")
    text = "".join(line for line in text.splitlines(keepends=True) if "store O" not in line)

    verdict = judge_program(check(schedule(parse(text)))[0], asked(40), seed=1, budget=FEW)

    assert verdict.verdict == "accepted", verdict.reason


def test_what_is_computed_past_the_head_dim_must_be_masked_before_it_is_summed() -> None:
    text = code_of(asked(40), "A100").replace("and get new O\n", "and get new O\nCompute RowSum(O + 1) and get r\n", 1)

    with pytest.raises(DiagnosticError) as caught:
        check_text(text)

    (found,) = caught.value.diagnostics
    assert found.code == "TL205"
    assert "d < D" in found.hint
