"""TL code to scheduled code: one rewriting of TL for each line of the Schedule block, in a fixed order.

`schedule(text_or_tree)` applies all; `steps` gives the program after each, so that one can read, show, switch off and
test every choice alone. Not here: what a choice is worth (author/planner).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qimeng_attention.schedule import (
    explicit,
    grid,
    guard,
    hold,
    lane_sums,
    prefetch,
    ring,
    split,
    store,
    sync,
    warps,
)
from qimeng_attention.schedule.rewriting import Rewriting, ScheduleError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check
from qimeng_attention.tl.types import Checked

# The order is part of the language: each rewriting may rely on those before it.
REWRITINGS: dict[str, Rewriting] = {
    m.REWRITING.name: m.REWRITING
    for m in (explicit, ring, prefetch, hold, lane_sums, store, sync, split, guard, warps, grid)
}
ALWAYS = ("explicit", "copies")  # written out even where the Schedule says nothing of them
DEFAULTS = {"explicit": s.Choice(("explicit",)), "copies": s.Choice(("copies", "sync"))}


@dataclass(frozen=True)
class Step:
    """One rewriting applied."""

    rewriting: Rewriting
    choice: s.Choice
    before: s.Program
    after: s.Program


def schedule(program: s.Program, *, target: str | None = None) -> s.Program:
    """Apply every choice of every kernel; the result has no Schedule block.

    Args:
        program: TL code that the checker passes; a program that is scheduled already comes back as it is.
        target: checks against this GPU instead of the one the program names.

    Raises:
        DiagnosticError: the program does not pass the checker, or a choice is unknown, malformed or does not fit (TL6xx).
    """
    done = program
    for step in steps(program, target=target):
        done = step.after
    return done


def steps(program: s.Program, *, target: str | None = None) -> Iterator[Step]:
    """Give the program before and after each rewriting, in order."""
    for number in range(len(program.kernels)):
        for step in _kernel_steps(program, number, target):
            yield step
            program = step.after


def _kernel_steps(program: s.Program, number: int, target: str | None) -> Iterator[Step]:
    checked = _check_one(program, number, target)
    if checked.level == "scheduled":
        return
    choices = _ordered(program.kernels[number].schedule)
    for name, choice in choices:
        rewriting = REWRITINGS[name]
        rest = tuple(c for _, c in choices if c.span != choice.span or c.words != choice.words)
        current = replace(checked.kernel, schedule=())
        made = rewriting.apply(current, choice, replace(checked, kernel=current))
        choices = [(n, c) for n, c in choices if c is not choice]
        left = tuple(
            c for _, c in choices if c.words not in (DEFAULTS["explicit"].words, DEFAULTS["copies"].words)
        )
        after = _with_kernel(program, number, replace(made, schedule=left, schedule_comment=""))
        yield Step(rewriting, choice, program, after)
        del rest
        program = after
        checked = _check_one(program, number, target)


def _check_one(program: s.Program, number: int, target: str | None) -> Checked:
    one = replace(program, kernels=(program.kernels[number],))
    return check(one, target=target, model=False)[0]


def _with_kernel(program: s.Program, number: int, kernel: s.Kernel) -> s.Program:
    kernels = list(program.kernels)
    kernels[number] = kernel
    return replace(program, kernels=tuple(kernels))


def _ordered(choices: tuple[s.Choice, ...]) -> list[tuple[str, s.Choice]]:
    """Put the choices in the order of the table, with those that are always written out."""
    found: list[tuple[str, s.Choice]] = []
    for choice in choices:
        name = choice.words[0]
        if name not in REWRITINGS or name == "explicit":
            near = difflib.get_close_matches(name, REWRITINGS, n=1, cutoff=0.4)
            raise ScheduleError(
                "TL601",
                choice.span,
                f"no rewriting is named '{name}'",
                f"did you mean '{near[0]}'?" if near else f"take one of {', '.join(REWRITINGS)}",
            )
        found.append((name, choice))
    given = {name for name, _ in found}
    found += [(name, DEFAULTS[name]) for name in ALWAYS if name not in given]
    order = list(REWRITINGS)
    return sorted(found, key=lambda pair: order.index(pair[0]))


__all__ = ["REWRITINGS", "Rewriting", "ScheduleError", "Step", "schedule", "steps"]
