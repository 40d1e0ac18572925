"""A program with other tile sizes and another schedule: what a proposal may change, and nothing else.

What is computed stays: a proposal's statements have to be the program's own, but for the values of `Tile` and the
Schedule. So what goes on is the program itself with these two taken from the proposal; its comments stay too.

Not here: what a proposal is worth (workflow/improvement.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import replace

from qimeng_attention.errors import QimengError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import choice_text, expression, print_program

_COMMENT = re.compile(r"\s*#.*$")


class OtherStatement(QimengError):
    """A proposal that changes what is computed."""

    exit_code = 1
    code = "LM320"


class TriedBefore(QimengError):
    """A proposal that says nothing new: it was tried, or is the program itself."""

    exit_code = 1
    code = "LM321"


def rescheduled(program: str, proposal: str) -> str:
    """Give a program with the tile values and the schedule of a proposal.

    Raises:
        OtherStatement: another statement differs; the first one is named.
        DiagnosticError: the proposal does not parse.
    """
    base, other = parse(program, "code.tl"), parse(proposal, "code.tl")
    _require_same(_fixed_lines(base), _fixed_lines(other))
    kernels = tuple(_with_choices(k, o) for k, o in zip(base.kernels, other.kernels, strict=True))
    return print_program(replace(base, kernels=kernels))


def bare(program: str) -> str:
    """Give a program without its comments: what a model is shown, who is to find reasons of its own."""
    lines = (_COMMENT.sub("", line) for line in program.splitlines())
    text = "\n".join(line for line in lines if line.strip())
    return re.sub(r"^(Schedule|(?<!\A)Kernel )", r"\n\1", text, flags=re.MULTILINE) + "\n"


def choices(program: str) -> list[str]:
    """List what a proposal may change, a line each: `Tile BM = 128`, `pingpong consumer in loops`."""
    kernels = parse(program, "code.tl").kernels
    found = []
    for k in kernels:
        of = f"{k.name}: " if len(kernels) > 1 else ""
        tiles = [entry for n in k.body if isinstance(n, s.Tile) for entry in n.entries]
        found += [f"{of}Tile {name} = {expression(value)}" for name, value in tiles]
        found += [of + choice_text(c) for c in k.schedule]
    return found


def changes(before: str, after: str) -> list[str]:
    """Say what differs between two programs' choices: `- LINE` is gone, `+ LINE` is new."""
    old, new = choices(before), choices(after)
    return [f"- {line}" for line in old if line not in new] + [f"+ {line}" for line in new if line not in old]


def _with_choices(kernel: s.Kernel, other: s.Kernel) -> s.Kernel:
    tiles = iter([n for n in other.body if isinstance(n, s.Tile)])
    body = tuple(replace(next(tiles), above=n.above) if isinstance(n, s.Tile) else n for n in kernel.body)
    return replace(kernel, body=body, schedule=other.schedule, schedule_comment=other.schedule_comment)


def _fixed_lines(program: s.Program) -> list[str]:
    """Give the lines that have to stay: all but the schedule's, tiles by their names alone."""
    kernels = tuple(replace(k, body=tuple(_named(n) for n in k.body), schedule=()) for k in program.kernels)
    text = print_program(replace(program, kernels=kernels, below=()))
    return [line for raw in text.splitlines() if (line := _COMMENT.sub("", raw)).strip()]


def _named(n: s.Statement) -> s.Statement:
    return replace(n, entries=tuple((name, s.Num(0)) for name, _ in n.entries)) if isinstance(n, s.Tile) else n


def _require_same(kept: list[str], proposed: list[str]) -> None:
    for old, new in _differences(kept, proposed):
        told = f"`{new}` stands where the program has `{old}`" if old and new else ""
        told = told or (f"`{old}` is missing" if old else f"`{new}` is no line of the program")
        told = re.sub(r"Tile (.*?)`", lambda m: f"Tile {m[1].replace(' = 0', ' = ...')}`", told)
        raise OtherStatement(
            f"a statement differs: {told}",
            hint="change nothing but the values of Tile and the lines of the Schedule; copy the rest as it is",
        )


def _differences(kept: list[str], proposed: list[str]) -> Iterator[tuple[str, str]]:
    matcher = difflib.SequenceMatcher(None, kept, proposed, autojunk=False)
    for tag, a, b, c, d in matcher.get_opcodes():
        if tag != "equal":
            yield (kept[a].strip() if a < b else "", proposed[c].strip() if c < d else "")
