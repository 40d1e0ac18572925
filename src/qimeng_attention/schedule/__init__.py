"""TL code to scheduled code: one rewriting of TL for each line of the Schedule block, in a fixed order.

`schedule(text_or_tree)` applies all; `steps` gives the program after each, so that one can read, show, switch off and
test every choice alone. Not here: what a choice is worth (author/planner).
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass, replace

from qimeng_attention.errors import Diagnostic, DiagnosticError
from qimeng_attention.schedule import (
    ahead,
    approximate,
    carry,
    explicit,
    grid,
    group,
    guard,
    hold,
    lane_sums,
    overlap,
    pingpong,
    prefetch,
    rescale,
    ring,
    roles,
    skip,
    split,
    stage,
    store,
    sync,
    threshold,
    unroll,
    unswitch,
    warps,
)
from qimeng_attention.schedule.rewriting import Rewriting, ScheduleError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check
from qimeng_attention.tl.types import Checked

# The order is part of the language: each rewriting may rely on those before it.
REWRITINGS: dict[str, Rewriting] = {
    m.REWRITING.name: m.REWRITING
    for m in (
        explicit,
        approximate,
        ring,
        prefetch,
        hold,
        lane_sums,
        threshold,
        store,
        sync,
        split,
        guard,
        roles,
        carry,
        ahead,
        overlap,
        rescale,
        unswitch,
        pingpong,
        stage,
        unroll,
        warps,
        skip,
        grid,
        group,
    )
}
# Written out even where the Schedule says nothing of them.
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
        DiagnosticError: the program does not pass the checker, or a choice is unknown, malformed or does not fit
        (TL6xx).
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
    for position, (rewriting, choice) in enumerate(choices):
        bare = replace(checked.kernel, schedule=())
        made = rewriting.apply(bare, choice, replace(checked, kernel=bare))
        left = tuple(c for _, c in choices[position + 1 :] if c not in DEFAULTS.values())
        after = _with_kernel(program, number, replace(made, schedule=left, schedule_comment=""))
        yield Step(rewriting, choice, program, after)
        program = after
        checked = _check_one(program, number, target, choice)


def _check_one(program: s.Program, number: int, target: str | None, choice: s.Choice | None = None) -> Checked:
    """Check one kernel; what a choice broke is told at the choice where it has no place of its own."""
    one = replace(program, kernels=(program.kernels[number],))
    try:
        return check(one, target=target, model=False)[0]
    except DiagnosticError as error:
        if choice is None:
            raise
        placed = [d if d.span.line else replace(d, span=choice.span) for d in error.diagnostics]
        raise DiagnosticError(placed) from error


def _with_kernel(program: s.Program, number: int, kernel: s.Kernel) -> s.Program:
    kernels = list(program.kernels)
    kernels[number] = kernel
    return replace(program, kernels=tuple(kernels))


def _ordered(choices: tuple[s.Choice, ...]) -> list[tuple[Rewriting, s.Choice]]:
    """Put the choices in the order of the table, with those that are always written out."""
    names = [name for name in REWRITINGS if name != "explicit"]
    unknown = [_unknown(choice, names) for choice in choices if choice.words[0] not in names]
    if unknown:
        raise DiagnosticError(unknown)
    found = [(choice.words[0], choice) for choice in choices]
    given = {name for name, _ in found}
    found += [(name, choice) for name, choice in DEFAULTS.items() if name not in given and not _by_rings(name, given)]
    order = list(REWRITINGS)
    return [(REWRITINGS[name], choice) for name, choice in sorted(found, key=lambda pair: order.index(pair[0]))]


def _by_rings(name: str, given: set[str]) -> bool:
    """Roles meet at rings: there are no groups of copies to wait for."""
    return name == "copies" and "roles" in given


def _unknown(choice: s.Choice, names: list[str]) -> Diagnostic:
    name = choice.words[0]
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    hint = f"did you mean '{REWRITINGS[near[0]].form}'?" if near else f"take one of {', '.join(names)}"
    return Diagnostic("TL601", f"no choice of a Schedule begins with '{name}'", hint, choice.span)


__all__ = ["REWRITINGS", "Rewriting", "ScheduleError", "Step", "schedule", "steps"]
