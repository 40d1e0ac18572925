"""Every rewriting keeps what a program computes: bit by bit if it is exact, within a stated bound if it moves sums."""

from __future__ import annotations

import re

import numpy as np
import pytest

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import REWRITINGS, Step, schedule, steps
from qimeng_attention.tl.checker import check, check_with_findings
from qimeng_attention.tl.functions import APPROXIMATIONS
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from schedule.small import MASKS, SIZES, differences, edit, run, run_text, scheduled_text, text_of

SPLIT = "split loop i where Mask is not all true"
GUARD = "guard Mask of loop i where it is all true"
ROLES = "roles producer (24 registers), consumer (2 along q, 240 registers)"
OVERLAP = "overlap GEMM P, V of the previous tile with the row statistics of this one"
EXPONENTIALS = "overlap GEMM P, V of the previous tile with the exponentials of this one"
SCHEDULES = {
    "nothing": [],
    "async": ["copies async"],
    "sync rings": ["ring K stages 2, V stages 2", "prefetch K 1 ahead, V 0 ahead", "copies sync"],
    "one stage": ["ring K stages 1, V stages 1", "prefetch K 1 ahead, V 0 ahead", "copies async", SPLIT],
    "no prefetch": ["ring K stages 2, V stages 2", "prefetch K 0 ahead, V 0 ahead", "copies async"],
    "two stages": ["ring K stages 2, V stages 2", "prefetch K 2 ahead, V 1 ahead", "copies async", SPLIT],
    "as far as it goes": ["ring K stages 2, V stages 2", "prefetch K 2 ahead, V 2 ahead", "copies async", GUARD],
    "three stages": ["ring K stages 3", "prefetch K 2 ahead", "copies async"],
    "held": ["hold Q in register", "copies async", "sums per lane", SPLIT],
    "skipped": ["ring K stages 2", "prefetch K 1 ahead", "copies async", GUARD, "skip blocks past the end"],
    "stored": ["store O through shared over Q", "copies async", "warps 2 along q", "grid longest first"],
    "all": [
        "ring K stages 2, V stages 2",
        "prefetch K 1 ahead, V 1 ahead",
        "hold Q in register",
        "sums per lane",
        "store O through shared over Q",
        "copies async",
        SPLIT,
        "warps 2 along q, 2 blocks an SM",
        "grid head fastest",
    ],
    "carried": ["carry V, K through register", SPLIT],
    "carried ahead": [
        "ring K stages 1, V stages 2",
        "prefetch K 1 ahead, V 1 ahead",
        "store O through shared over Q",
        "copies sync",
        GUARD,
        "carry K, V through register",
        "warps 2 along q",
    ],
    "carried as for a T4": ["prefetch K 1 ahead", "copies sync", GUARD, "carry K, V through register"],
    "roles": [ROLES],
    "roles in turns": ["ring K stages 2, V stages 1", ROLES, OVERLAP, "pingpong consumer", "grid persistent"],
    "roles, all late": [
        "ring K stages 2, V stages 2",
        "sums per lane running",
        GUARD,
        ROLES,
        EXPONENTIALS,
        "rescale O under GEMM Q, K.T of the next tile",
        "unswitch loop i",
        "pingpong consumer in loops",
        "grid persistent by counter",
    ],
    "threshold": ["threshold 8"],
    "unrolled": ["ring K stages 2, V stages 2", "copies async", "unroll loop i by 3"],
    "exponentials on the FMA lanes": ["approximate exp2 1 of 2", ROLES, OVERLAP, "grid persistent"],
    "roles, threshold": [
        "ring K stages 2, V stages 2",
        "sums per lane",
        "threshold 1",
        ROLES,
        OVERLAP,
        "rescale O under GEMM Q, K.T of the next tile",
        "grid persistent",
    ],
    "roles, all": [
        "ring K stages 2, V stages 2",
        "sums per lane",
        GUARD,
        ROLES,
        "ahead Q stages 2",
        OVERLAP,
        "unswitch loop i",
        "pingpong consumer in loops",
        "stage O through shared by tma",
        "skip blocks past the end",
        "grid longest first",
        "grid persistent by counter",
        "group head by 2 around block",
    ],
}


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_each_step_keeps_the_meaning(mask: str, name: str) -> None:
    text = scheduled_text(MASKS[mask], *SCHEDULES[name])
    assert len(SIZES) >= 20
    kind = "exact"

    for step in steps(parse(text)):
        kind = max(kind, step.rewriting.kind, key=["exact", "reassociating", "approximate"].index)
        if step.after == step.before:
            continue
        for sizes in SIZES:
            before = run_text(MASKS[mask], sizes)
            after = run(step.after, sizes)

            assert differences(before, after, kind) == [], (step.choice.words, sizes)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", SCHEDULES)
def test_the_result_passes_the_model_of_concurrency(mask: str, name: str) -> None:
    program = schedule(parse(scheduled_text(MASKS[mask], *SCHEDULES[name])))

    _, found = check_with_findings(program)
    _, of_text = check_with_findings(parse(print_program(program)))

    assert [d.code for d in (*found, *of_text)] == []


def softcapped(*choices: str) -> str:
    macro = "    Compute OnlineSoftmax S, O, m, l with scale * log2e"
    capped = "    Compute 4 * tanh(S * (scale / 4)) and get new S\n    Compute OnlineSoftmax S, O, m, l with log2e"
    return scheduled_text(edit(MASKS["causal"], (macro, capped), ("m * scale + ln(l)", "m + ln(l)")), *choices)


def test_an_approximation_moves_results_by_its_error_at_most() -> None:
    """A score of at most 4 is off by at most 4 * 2^-11; weights by twice that, and a result by 2^-7 more in bf16."""
    exact, rough = (schedule(parse(softcapped(*choices))) for choices in ((), ("approximate tanh",)))
    score = 4 * APPROXIMATIONS["tanh"][1]
    different = False

    for sizes in SIZES:
        for one, other in zip(run(exact, sizes), run(rough, sizes), strict=True):
            assert np.allclose(one["Lse"], other["Lse"], rtol=0, atol=score + 1e-5, equal_nan=True)
            largest = np.abs(one["Out"]).max(initial=0)
            assert np.allclose(one["Out"], other["Out"], rtol=2.0**-7, atol=2 * 2 * score * largest, equal_nan=True)
            different |= not np.array_equal(one["Lse"], other["Lse"], equal_nan=True)
    assert different


@pytest.mark.parametrize(
    ("choice", "text", "message"),
    [
        ("approximate tanh", "causal", "no statement computes tanh"),
        ("approximate ln", "causal", "no approximation of ln"),
        ("approximate exp2 5 of 4", "causal", "no share"),
        ("approximate", "causal", "does not fit the form"),
    ],
)
def test_an_approximation_that_fits_nowhere_is_refused(choice: str, text: str, message: str) -> None:
    with pytest.raises(DiagnosticError, match=message):
        schedule(parse(scheduled_text(MASKS[text], choice)))


def test_every_rewriting_is_among_the_schedules() -> None:
    used = {choice.split()[0] for choices in SCHEDULES.values() for choice in choices} | {"explicit"}

    assert used == set(REWRITINGS)


# ------------------------------------------------------------------ the design programs

CHOICES = [
    "hold Q in register",
    "sums per lane",
    "copies async",
    SPLIT,
    GUARD,
    "store O through shared over Q",
    "grid longest first",
    "grid head fastest",
    "ring K stages 2, V stages 2",
    "prefetch K 1 ahead, V 0 ahead",
    "warps 1 along h",
    "warps 2 along q",
]
DESIGNS = [
    "alibi",
    "block_list",
    "differential",
    "forgetting",
    "gemm_epilogue",
    "linear",
    "nsa_selected",
    "paged",
    "paged_gather",
    "sigmoid",
    "sink",
    "softcap",
    "stick_breaking",
    "varlen",
    "window_and_sinks",
]
LENGTHS = [
    (0, 0),
    (1, 0),
    (0, 3),
    (1, 1),
    (1, 40),
    (5, 5),
    (15, 16),
    (16, 15),
    (16, 16),
    (17, 17),
    (17, 33),
    (31, 8),
    (32, 32),
    (33, 31),
    (33, 64),
    (40, 3),
    (47, 48),
    (64, 20),
    (65, 65),
    (20, 90),
]


def small(name: str) -> str:
    """Shrink a program's tiles and head dims as far as its own sizes allow."""
    text = text_of(name)
    text = re.sub(r"\b(BM|BN|BK|C) = (128|64)\b", lambda m: f"{m[1]} = {32 if m[2] == '128' else 16}", text)
    text = re.sub(r"\b(D|Dk|Dv) = (128|64)\b", lambda m: f"{m[1]} = {32 if m[2] == '128' else 16}", text)
    return re.sub(r"\nSchedule\b.*", "", text, flags=re.DOTALL) + "\n"


def sizes_of(names: tuple[str, ...], number: int) -> dict[str, int]:
    first, second = LENGTHS[number]
    lengths = {
        "Sq": first,
        "Sk": second,
        "S": second,
        "M": first,
        "N": second,
        "K": first + second,
        "Tq": first,
        "Tk": second,
    }
    few = {
        "B": 1 + number % 2,
        "H": 2,
        "Hq": 4,
        "Hk": 2,
        "n": number % 4,
        "Most": number % 5,
        "Pages": 1 + number % 4,
        "Window": 5,
        "First": 3,
    }
    return {name: (lengths | few)[name] for name in names}


@pytest.mark.parametrize("name", DESIGNS)
def test_each_choice_keeps_the_meaning_of_a_design_program(name: str) -> None:
    text = small(name)
    (checked,) = check(parse(text), model=False)
    cases = [sizes_of(checked.sizes, number) for number in range(len(LENGTHS))]
    if name == "nsa_selected":  # a block for each query
        cases = [{**c, "Sq": min(c["Sq"], 5)} for c in cases]
    if name == "varlen":  # what its offsets leave out is not written: no row, or all of them
        cases = [{**c, "Tq": 0} for c in cases]
    applied = []

    for choice in CHOICES:
        steps_of = _steps(scheduled_text(text, *_with_rings(choice)))
        if not steps_of:
            continue
        applied.append(choice)
        kind = "exact" if all(s.rewriting.kind == "exact" for s in steps_of) else "reassociating"
        for sizes in cases:
            assert differences(run_text(text, sizes), run(steps_of[-1].after, sizes), kind) == [], (choice, sizes)

    assert "copies async" in applied
    assert len(applied) >= 2


def _steps(text: str) -> list[Step]:
    """Give the steps, or none where a choice does not fit."""
    try:
        return list(steps(parse(text)))
    except DiagnosticError as error:
        if {d.code for d in error.diagnostics} == {"TL603"}:
            return []
        raise


def _with_rings(choice: str) -> list[str]:
    return ["ring K stages 2, V stages 2", choice] if choice.startswith("prefetch") else [choice]


@pytest.mark.parametrize("name", DESIGNS)
def test_a_design_program_passes_the_model_of_concurrency_with_each_choice(name: str) -> None:
    text = small(name)

    for choice in CHOICES:
        steps_of = _steps(scheduled_text(text, *_with_rings(choice)))
        if not steps_of:
            continue
        _, found = check_with_findings(steps_of[-1].after)

        assert [d for d in found if d.severity == "error"] == [], choice
