"""`roles producer (24 registers), consumer (2 along q, 240 registers)`: copies in a role of their own (exact).

The producer keeps the loops and every Copy from global to shared memory; the consumers keep everything else, each with
its share of the rows. Where a Copy stood, the consumers wait for it; behind the last statement that reads the tile,
they release it. The rings count their uses themselves, so that slots are no longer written.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qimeng_attention.schedule.rewriting import (
    Rewriting,
    Shared,
    fresh_name,
    malformed,
    number,
    reads,
    shared_names,
    unfit,
    with_body,
)
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import add, mul, names_in, num, statements
from qimeng_attention.tl.types import Checked

FORM = "roles NAME (NUMBER registers), NAME (NUMBER along AXIS, NUMBER registers)"


@dataclass(frozen=True)
class _Split:
    """What the choice says, and what the rewriting needs to know of the program."""

    producer: str
    consumer: str
    axis: str
    instances: int
    producer_registers: int
    consumer_registers: int
    var: str
    rows: int  # of one instance
    shared: Shared
    checked: Checked

    @property
    def first_row(self) -> s.Expr:
        """Give the first row of an instance within the block's tile."""
        return mul(s.Name(self.var), num(self.rows))


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Divide the kernel into the two roles."""
    split = _read(kernel, choice, checked)
    frame, inside = _frame(kernel)
    produced = _needed(_produce(inside, split))
    consumed = _needed(tuple(_consume(inside, split)))
    span = s.Range(num(0), num(split.instances))
    producer = s.Role(split.producer, produced, registers=num(split.producer_registers))
    consumer = s.Role(split.consumer, consumed, split.var, span, num(split.consumer_registers))
    return with_body(kernel, (*frame, producer, consumer))


def _read(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> _Split:
    words = [w for w in choice.words[1:] if w not in "(),"]
    if len(words) != 9 or (words[2], words[5], words[8]) != ("registers", "along", "registers"):
        raise malformed(choice, FORM)
    for n in statements(kernel.body):
        staged = isinstance(n, s.Allocate) and n.over is not None
        moved = isinstance(n, s.Copy) and (n.asynchronous or (n.source, n.target) == ("shared", "register"))
        if staged or moved or isinstance(n, s.Wait | s.Commit | s.Barrier):
            raise unfit(
                choice,
                "copies are scheduled already (by prefetch, hold, store or copies), a role schedules them itself",
                "leave those choices out; `ring`, `sums`, `split` and `guard` go with roles",
            )
    instances, axis = number(words[4], choice, FORM), words[6]
    sizes = {t.axes[0].size for t in checked.tiles.values() if t.space == "register" and t.axes[0].name == axis}
    if len(sizes) != 1 or instances < 1 or max(sizes) % instances:
        found = ", ".join(map(str, sorted(sizes))) or "none"
        raise unfit(
            choice,
            f"{instances} instances cannot share the rows along {axis} (tiles with rows there: {found})",
            "name the axis of the accumulators' rows, and a number that divides it",
        )
    var = fresh_name("w", kernel)
    return _Split(
        words[0], words[3], axis, instances, number(words[1], choice, FORM), number(words[7], choice, FORM), var,
        sizes.pop() // instances, shared_names(checked), checked,
    )  # fmt: skip


def _frame(kernel: s.Kernel) -> tuple[list[s.Statement], tuple[s.Statement, ...]]:
    """Part the declarations that all roles share from what the roles do."""
    kept: list[s.Statement] = [
        n
        for n in kernel.body
        if isinstance(n, s.Size | s.Choose | s.Scalar | s.Tile | s.Grid)
        or (isinstance(n, s.Allocate) and n.space != "register")
    ]
    return kept, tuple(n for n in kernel.body if n not in kept and not isinstance(n, s.Warps))


def _is_fill(n: s.Statement) -> bool:
    return isinstance(n, s.Copy) and n.source == "global" and n.target == "shared"


# ------------------------------------------------------------------ the producer


def _produce(body: tuple[s.Statement, ...], split: _Split) -> tuple[s.Statement, ...]:
    """Keep the copies into shared memory with the control flow around them."""
    made: list[s.Statement] = []
    for n in body:
        if isinstance(n, s.Copy) and _is_fill(n):
            ring = split.shared[n.to_name or n.name]
            wait = s.Wait("empty", ring, above=n.above)
            made += [wait, replace(n, slot=None, asynchronous=True, signals=f"{ring}.full", above=())]
        elif isinstance(n, s.For | s.If) and any(_is_fill(x) for x in statements((n,))):
            made.append(_inside(n, lambda part: _produce(part, split)))
        elif isinstance(n, s.Let | s.Find):
            made.append(n)
    return tuple(made)


def _inside(n: s.For | s.If, f: object) -> s.Statement:
    if isinstance(n, s.For):
        return replace(n, body=f(n.body))  # type: ignore[operator]
    return replace(n, body=f(n.body), orelse=f(n.orelse))  # type: ignore[operator]


def _needed(body: tuple[s.Statement, ...]) -> tuple[s.Statement, ...]:
    """Leave out each Let whose name nothing behind it reads."""
    kept: list[s.Statement] = []
    for n in reversed(body):
        if isinstance(n, s.Let | s.Find) and not any(n.name in names_in(x) for x in statements(tuple(kept))):
            continue
        kept.insert(0, _inside(n, _needed) if isinstance(n, s.For | s.If) else n)
    return tuple(kept)


# ------------------------------------------------------------------ the consumers


def _consume(body: tuple[s.Statement, ...], split: _Split, moving: frozenset[str] = frozenset()) -> list[s.Statement]:
    """Keep all but the copies into shared memory; `moving` are the variables of the loops around."""
    places: dict[str, tuple[tuple[str, s.Expr], ...]] = {}
    pending = {
        i: split.shared[n.to_name or n.name] for i, n in enumerate(body) if isinstance(n, s.Copy) and _is_fill(n)
    }
    last = {ring: _last_reader(body, i, ring, split) for i, ring in pending.items()}
    made: list[s.Statement] = []
    for i, n in enumerate(body):
        if isinstance(n, s.Copy) and i in pending:
            starts = tuple((c.axis, c.start) for c in n.coordinate if c.axis is not None)
            places[n.to_name or n.name] = tuple((a, e) for a, e in starts if names_in(e) & moving)
            made.append(s.Wait("full", pending[i]))
        elif isinstance(n, s.For):
            made.append(replace(n, body=tuple(_consume(n.body, split, moving | {n.var}))))
        elif isinstance(n, s.If):
            parts = (tuple(_consume(part, split, moving)) for part in (n.body, n.orelse))
            made.append(replace(n, body=next(parts), orelse=next(parts)))
        else:
            made.append(_share(n, split, places))
        made += [s.Release(ring) for ring, at in last.items() if at == i]
    return made


def _last_reader(body: tuple[s.Statement, ...], fill: int, ring: str, split: _Split) -> int:
    """Give the position of the last statement that reads a tile; the Copy's own where none does."""
    readers = [i for i, n in enumerate(body) if i > fill and ring in reads(n, split.shared)]
    return max(readers, default=fill)


def _share(n: s.Statement, split: _Split, places: dict[str, tuple[tuple[str, s.Expr], ...]]) -> s.Statement:
    """Give an instance its rows of what a statement works on."""
    match n:
        case s.Allocate() if n.dims and n.dims[0].axis == split.axis:
            return replace(n, dims=(s.Dim(num(split.rows), split.axis), *n.dims[1:]))
        case s.Copy() if n.coordinate:
            return _share_copy(n, split)
        case s.Gemm():
            a, b = (replace(o, slot=None, at=places.get(o.name, o.at)) for o in (n.a, n.b))
            if a.name in split.shared and split.checked.tiles[a.name].axes[0].name == split.axis:
                a = replace(a, rows=s.Range(split.first_row, mul(add(s.Name(split.var), num(1)), num(split.rows))))
            return replace(n, a=a, b=b)
    return n


def _share_copy(n: s.Copy, split: _Split) -> s.Copy:
    """Let a Copy between registers and global memory move the instance's rows."""
    axes = [c.axis for c in n.coordinate if c.axis is not None]
    if split.axis not in axes:
        return n
    coordinate = tuple(_shifted(c, split) if c.axis == split.axis else c for c in n.coordinate)
    at = axes.index(split.axis)
    dims = tuple(replace(d, size=num(split.rows)) if i == at else d for i, d in enumerate(n.dims))
    return replace(n, coordinate=coordinate, dims=dims)


def _shifted(c: s.Coordinate, split: _Split) -> s.Coordinate:
    """Begin at the instance's first row; in memory too, unless the place follows from the row."""
    moved = replace(c, start=add(c.start, split.first_row))
    if c.at is None or split.axis in names_in(c.at):
        return moved
    return replace(moved, at=add(c.at, split.first_row))


REWRITING = Rewriting(
    "roles",
    FORM,
    "roles producer (24 registers), consumer (2 along q, 240 registers)",
    "Lets one role fill shared memory through the copy engine, and others compute, each with its share of the rows.",
    "exact",
    apply,
)
