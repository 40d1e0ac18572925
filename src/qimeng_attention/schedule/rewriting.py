"""What the table of rewritings holds of each, and the small tools that they share.

A rewriting takes a kernel to a kernel that means the same, within its class (rule 11 of the language):
`exact` (the same numbers), `reassociating` (sums in another order), `approximate` (with a stated bound).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qimeng_attention.errors import Diagnostic, DiagnosticError, Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import names_in, statements, words_in
from qimeng_attention.tl.types import Checked

Apply = Callable[[s.Kernel, s.Choice, Checked], s.Kernel]


@dataclass(frozen=True)
class Rewriting:
    """One schedule choice: `apply` gives the kernel in which the choice is written out as statements."""

    name: str  # the words a line of the Schedule block begins with
    form: str
    example: str
    doc: str
    kind: str  # "exact", "reassociating" or "approximate"
    apply: Apply


class ScheduleError(DiagnosticError):
    """A choice that is unknown, malformed, or does not fit the program."""

    def __init__(self, code: str, span: Span, message: str, hint: str) -> None:
        super().__init__([Diagnostic(code, message, hint, span)])


def malformed(choice: s.Choice, form: str) -> ScheduleError:
    """Make the error for a choice whose words do not fit its form."""
    return ScheduleError(
        "TL602",
        choice.span,
        f"'{' '.join(choice.words)}' does not fit the form of this choice",
        f"write it as `{form}`",
    )


def unfit(choice: s.Choice, message: str, hint: str) -> ScheduleError:
    """Make the error for a choice that the program gives no place for."""
    return ScheduleError("TL603", choice.span, message, hint)


def entries(choice: s.Choice, skip: int, form: str) -> list[list[str]]:
    """Split the words after the choice's name at commas."""
    groups: list[list[str]] = [[]]
    for word in choice.words[skip:]:
        if word == ",":
            groups.append([])
        else:
            groups[-1].append(word)
    if not all(groups):
        raise malformed(choice, form)
    return groups


def number(word: str, choice: s.Choice, form: str) -> int:
    """Read a number of a choice."""
    if not word.isdigit():
        raise malformed(choice, form)
    return int(word)


def with_body(kernel: s.Kernel, body: list[s.Statement] | tuple[s.Statement, ...]) -> s.Kernel:
    """Replace the kernel's statements."""
    return replace(kernel, body=tuple(body))


# ------------------------------------------------------------------ what depends on what


Shared = Mapping[str, str]  # a tile in shared memory -> the tile whose memory it is: itself, or what it is a view of


def shared_names(checked: Checked) -> Shared:
    """Give the tiles in shared memory, each with the tile that it is a view of, or itself."""
    return {n: t.view or n for n, t in checked.tiles.items() if t.space == "shared"}


def reads(n: s.Statement, shared: Shared) -> set[str]:
    """Give the shared tiles whose memory a statement reads, inside its block too."""
    match n:
        case s.Gemm():
            return {shared[o.name] for o in (n.a, n.b) if o.name in shared}
        case s.Copy() if n.source == "shared":
            return {shared[n.name]} if n.name in shared else set()
        case s.For() | s.Role():
            return set().union(*[reads(x, shared) for x in n.body])
        case s.If():
            return set().union(*[reads(x, shared) for x in (*n.body, *n.orelse)])
    return set()


def fills(n: s.Statement, shared: Shared) -> set[str]:
    """Give the shared tiles whose memory a statement writes, inside its block too."""
    match n:
        case s.Copy() if n.target == "shared":
            name = n.to_name or n.name
            return {shared[name]} if name in shared else set()
        case s.For() | s.Role():
            return set().union(*[fills(x, shared) for x in n.body])
        case s.If():
            return set().union(*[fills(x, shared) for x in (*n.body, *n.orelse)])
    return set()


def touches(n: s.Statement) -> set[str]:
    """Give the register tiles that a statement reads or writes."""
    found: set[str] = set()
    for x in statements((n,)):
        found |= names_in(x) | written_by(x)
        if isinstance(x, s.Reshape):
            found.add(x.name)
    return found


def written_by(n: s.Statement) -> set[str]:
    """Give the register tiles that a statement of fragments writes."""
    match n:
        case s.Compute():
            return {n.out}
        case s.Mask():
            return {n.tile}
        case s.Reshape():
            return {n.out or n.name}
    return set()


def fresh_name(name: str, kernel: s.Kernel) -> str:
    """Give `name`, or a longer one that the kernel does not use."""
    taken = words_in(kernel)
    while name in taken:
        name += "_"
    return name


def find_loop(kernel: s.Kernel, tile: str, shared: Shared) -> int | None:
    """Give the position of the loop that fills a tile."""
    for position, n in enumerate(kernel.body):
        if isinstance(n, s.For) and tile in fills(n, shared):
            return position
    return None


def map_operands(n: s.Statement, tile: str, f: Callable[[s.Operand], s.Operand]) -> s.Statement:
    """Change how a GEMM reads a tile."""
    if not isinstance(n, s.Gemm):
        return n
    a, b = (f(o) if o.name == tile else o for o in (n.a, n.b))
    return replace(n, a=a, b=b)
