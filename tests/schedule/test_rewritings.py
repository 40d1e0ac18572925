"""Every rewriting keeps the meaning, by its class, and puts in no more waits and barriers than are needed."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import REWRITINGS, schedule, steps
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check, check_text
from qimeng_attention.tl.interpreter import interpret
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.traverse import statements

GQA = (Path(__file__).parents[2] / "docs" / "design" / "programs" / "gqa_causal.tl").read_text()
BOUND = "ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)"
CAUSAL = "k <= q + Sk - Sq"
MASKS = {
    "causal": (BOUND, CAUSAL),
    "full": ("ceildiv(Sk, BN)", "k >= 0"),
    "prefix": ("ceildiv(Sk, BN)", f"(k < 20 or {CAUSAL})"),
    "window": (BOUND.replace("0 : ", ""), f"{CAUSAL} and k >= q + Sk - Sq - 21"),
}
SCHEDULES = {
    "shipped": "",
    "two stages": "ring K stages 2, V stages 2\nprefetch K 1 ahead, V 1 ahead\ncopies async\nwarps 2 along q",
    "two ahead": "ring K stages 2, V stages 3\nprefetch K 2 ahead, V 2 "
    "ahead\nsums per lane\ncopies async\nwarps 2 along q",
    "split": "ring K stages 1, V stages 1\nprefetch K 1 ahead, V 0 ahead\nhold Q in register\ncopies async\n"
    "split loop i where Mask is not all true\nwarps 2 along q\ngrid head fastest",
    "synchronous": "store O through shared over Q\nwarps 2 along q",
}
SHAPES = [
    (0, 5),
    (5, 0),
    (1, 1),
    (1, 17),
    (17, 1),
    (31, 31),
    (32, 32),
    (33, 33),
    (32, 33),
    (33, 16),
    (15, 48),
    (48, 15),
    (16, 64),
    (64, 16),
    (65, 65),
    (3, 70),
    (70, 3),
    (40, 41),
    (41, 40),
    (64, 65),
    (97, 97),
]
# m = m * alpha + RowSum: a sum of at most 128 terms of at most 1 in another order, then O rounded to bf16.
REASSOCIATED = 2.0**-7


@cache
def _program(mask: str, choices: str) -> s.Program:
    bound, condition = MASKS[mask]
    text = GQA.replace("Tile BM = 128, BN = 64", "Tile BM = 32, BN = 16").replace("D = 128", "D = 64")
    text = text.replace(BOUND, bound).replace(CAUSAL + " and", condition + " and")
    head, _, shipped = text.partition("Schedule\n")
    lines = (
        shipped.replace("warps 4", "warps 2")
        if not SCHEDULES[choices]
        else "\n".join(f"    {c}" for c in SCHEDULES[choices].split("\n"))
    )
    return parse(head + "Schedule\n" + lines)


def _run(program: s.Program, sq: int, sk: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(sq * 1000 + sk)
    q, k, v = (rng.standard_normal((1, n, h, 64)).astype(np.float32) for n, h in ((sq, 2), (sk, 1), (sk, 1)))
    checked = check(program, model=False)[0]
    sizes = {"B": 1, "Sq": sq, "Sk": sk, "Hq": 2, "Hk": 1}
    return interpret(checked, sizes, {"Q": q, "K": k, "V": v}, {"scale": 0.125}, seed=sq + sk)


@pytest.mark.parametrize("choices", SCHEDULES)
@pytest.mark.parametrize("mask", MASKS)
def test_each_step_agrees_with_the_one_before(mask: str, choices: str) -> None:
    program = _program(mask, choices)
    taken = list(steps(program))
    before = {shape: _run(program, *shape) for shape in SHAPES}

    for step in taken:
        for shape in SHAPES:
            after = _run(step.after, *shape)
            for name, expected in before[shape].items():
                if step.rewriting.kind == "exact":
                    assert np.array_equal(after[name], expected, equal_nan=True), (step.choice.words, shape, name)
                else:
                    assert np.array_equal(np.isinf(after[name]), np.isinf(expected))
                    finite = np.isfinite(expected)
                    error = np.abs(after[name][finite] - expected[finite])
                    assert np.all(error <= REASSOCIATED * (1 + np.abs(expected[finite])))
            before[shape] = after
    assert {t.rewriting.name for t in taken} >= {"explicit", "copies"}


def test_every_rewriting_is_tried_above() -> None:
    used = {t.rewriting.name for mask in MASKS for c in SCHEDULES for t in steps(_program(mask, c))}

    assert used == set(REWRITINGS)


@pytest.mark.parametrize("choices", ["shipped", "two stages", "split", "synchronous"])
def test_no_wait_barrier_or_commit_can_be_left_out(choices: str) -> None:
    text = print_program(schedule(_program("causal", choices)))
    check_text(text)
    lines = text.splitlines()
    needed = [i for i, line in enumerate(lines) if line.strip().split(" ")[0] in ("Wait", "Barrier", "Commit")]
    redundant, located = [], 0

    for i in needed:
        try:
            check_text("\n".join(lines[:i] + lines[i + 1 :]))
            redundant.append(f"{i + 1}: {lines[i].strip()}")
        except DiagnosticError as refused:
            located += any(d.code.startswith("TL4") and d.span.line > 0 for d in refused.diagnostics)

    assert located == len(needed) - len(redundant) >= 3
    assert redundant == [], "left out without a fault"


@pytest.mark.parametrize(
    ("choice", "code"),
    [
        ("rings K stages 2", "TL601"),
        ("roles producer", "TL601"),
        ("ring K 2", "TL602"),
        ("ring K stages two", "TL602"),
        ("ring X stages 2", "TL603"),
        ("ring Q stages 2", "TL603"),
        ("ring K stages 99", "TL603"),
        ("prefetch K 3 ahead", "TL603"),
        ("hold K in register", "TL603"),
        ("warps 16 along q", "TL603"),
        ("warps 2 along k", "TL603"),
        ("grid widest first", "TL602"),
        ("split loop j where Mask is not all true", "TL603"),
        ("store O through shared", "TL602"),
    ],
)
def test_a_choice_that_does_not_fit_says_what_would(choice: str, code: str) -> None:
    head, _, _ = print_program(_program("causal", "synchronous")).partition("Schedule\n")

    with pytest.raises(DiagnosticError) as refused:
        schedule(parse(head + f"Schedule\n    {choice}\n"))

    found = refused.value.diagnostics[0]
    assert found.code == code
    assert found.span.line > 0
    assert found.hint


def test_scheduled_programs_come_back_as_they_are() -> None:
    done = schedule(_program("causal", "shipped"))

    assert schedule(done) == done
    assert not any(k.schedule for k in done.kernels)
    assert any(isinstance(n, s.Barrier) for n in statements(done.kernels[0].body))
