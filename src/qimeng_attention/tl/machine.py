"""The machine that runs TL: blocks of threads, their shared memory, and strands (roles) that meet at barriers.

A strand runs statements in order; strands of a block interleave at random, and asynchronous copies complete at random
moments, so that a lost wait, an early refill or a deadlock shows on the CPU, at a line. Every fault is a `Fault`.

Not here: what each statement does (statements/), whole runs over a grid (interpreter.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from qimeng_attention.errors import Diagnostic, Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import Environment, TooLarge, Value, boolean, integer
from qimeng_attention.tl.functions import REDUCTIONS
from qimeng_attention.tl.numerics import Array, round_to
from qimeng_attention.tl.traverse import expressions, names_in
from qimeng_attention.tl.types import Axis, Checked, TileType

V = TypeVar("V", int, bool)
Outside: TypeAlias = frozenset[int]  # indices along an axis at which a tile holds no element of its tensor

ELEMENTS_A_STEP = 4_096  # NumPy handles so many in the time of a statement
STEPS_BETWEEN_PROGRESS = 10_000  # strands asked in vain before the block counts as deadlocked


class Fault(Exception):
    """Something a correct program never does, found while running; carries its diagnostic."""

    def __init__(self, code: str, span: Span, message: str, hint: str) -> None:
        super().__init__(message)
        self.diagnostic = Diagnostic(code, message, hint, span)


class Unfinished(Exception):
    """A run that was given only so many steps has taken them."""


@dataclass(eq=False)
class Slot:
    """One stage of a shared tile: its content, and how far its fill and its readers are."""

    data: Array | None = None
    origin: dict[str, int] = field(default_factory=dict)
    ends: dict[str, Outside] = field(default_factory=dict)  # of axes along which the tile is ragged
    zeros: bool = True  # past these ends: a Copy put them there, no computation changed them
    state: str = "empty"  # "in flight", "landed" (not every warp may look yet), "ready"
    group: int = -1  # the group of asynchronous copies that fills it
    read: bool = False  # since the last barrier
    fills: int = 0  # rings: completed fills
    releases: int = 0  # rings: releases by consumers
    reading: int = 0  # asynchronous GEMMs and stores that still read it
    writer: Strand | None = None  # who filled it by its own writes; None: the copy engine
    fenced: bool = True  # the copy engine and the tensor cores see what was written


@dataclass
class Register:
    """A register tile's content; `pending` counts asynchronous GEMMs that have not been waited for."""

    data: Array | None
    origin: dict[str, int] = field(default_factory=dict)
    ends: dict[str, Outside] = field(default_factory=dict)
    pending: bool = False
    zeros: bool = False  # past its ends: a Copy put them there, no computation changed them


@dataclass
class Block:
    """One block of threads at one point of the grid."""

    machine: Machine
    index: dict[str, int]
    shared: dict[str, list[Slot]] = field(default_factory=dict)
    open_group: int = 0
    groups_done: int = 0
    arrivals: list[Callable[[], None]] = field(default_factory=list)  # asynchronous copies on their way
    turn: int = 0
    turns: int = 1
    consumers: dict[str, int] = field(default_factory=dict)  # ring: how many strands release it
    at_barrier: int = 0
    barrier_phase: int = 0
    strands: int = 1
    issued_groups: bool = False


class InFlight(NamedTuple):
    """An asynchronous GEMM that has not been waited for."""

    out: str
    slots: list[Slot]  # the stages it reads
    operands: tuple[str, ...]  # the register tiles it reads


class Contraction(NamedTuple):
    """A stretch of an axis that an accumulating GEMM summed over."""

    place: Span
    instance: int  # of the role that did: each sums for its own rows
    axis: str
    start: int
    size: int


@dataclass(eq=False)
class Strand:
    """A thread of statements: the block itself, or one instance of a role."""

    machine: Machine
    block: Block
    ints: dict[str, int]
    registers: dict[str, Register] = field(default_factory=dict)
    cursor: dict[tuple[str, str], int] = field(default_factory=dict)  # (ring, end): uses so far
    waited: dict[str, int] = field(default_factory=dict)  # ring: fills this strand has waited for
    emptied: dict[str, int] = field(default_factory=dict)  # ring: empty slots this strand has waited for
    places: dict[str, Span] = field(default_factory=dict)  # ring: where this strand last waited for a fill
    gemms: list[InFlight] = field(default_factory=list)  # oldest first
    stores: list[tuple[str, Slot, Span]] = field(default_factory=list)  # asynchronous, oldest first
    consumes: frozenset[str] = frozenset()  # rings whose fills this strand waits for or releases
    instance: int = 0
    name: str = ""

    # -------------------------------------------------------------- values
    def integer(self, e: s.Expr, span: Span) -> int:
        """Evaluate an integer expression; elements of named tensors may take part."""
        return self._uniform(e, span, integer, lambda data: int(np.asarray(data).reshape(-1)[0]))

    def boolean(self, e: s.Expr, span: Span) -> bool:
        """Evaluate a condition that the whole role agrees on."""
        return self._uniform(e, span, boolean, lambda data: bool(np.all(data)))

    def _uniform(self, e: s.Expr, span: Span, quick: Callable[..., V], read: Callable[[Any], V]) -> V:
        place = e.span if e.span.line else span
        try:
            try:
                return quick(e, self.ints)
            except ValueError as error:
                if isinstance(error, TooLarge):
                    raise
                return read(self.environment().evaluate(e).data)  # it reads an element of a tensor
        except KeyError as missing:
            raise Fault(
                "TL101", place, f"{missing.args[0]} has no value here", "give it one on every path to this line"
            ) from None
        except ZeroDivisionError:
            raise Fault("TL107", place, "division by zero", "guard the divisor, as with max(x, 1)") from None
        except (TooLarge, OverflowError):
            raise Fault("TL103", place, "an integer here is 2^62 or more", "check the sizes it is made of") from None

    def environment(self, names: set[str] | None = None, span: Span | None = None) -> Environment:
        """Give what an expression over the named register tiles may read, with the global indices of their axes."""
        tiles: dict[str, Value] = {}
        indices: dict[str, Array] = {}
        for name in sorted(names or ()):
            kind = self.machine.checked.tiles.get(name)
            if kind is None or kind.space != "register":
                continue
            register = self.read_register(name, span or Span())
            if register.data is not None:
                tiles[name] = Value(register.data, kind.axis_names)
            for axis in kind.axes:
                if axis.name in register.origin:
                    start = register.origin[axis.name]
                    known = indices.get(axis.name)
                    if known is not None and (len(known) == 0 or known[0] != start):
                        raise Fault(
                            "TL105",
                            span or Span(),
                            f"axis {axis.name} begins at {known[0]} in one operand and at {start} in another",
                            "combine tiles that lie at the same place",
                        )
                    indices[axis.name] = start + np.arange(axis.size)
        for axis in {
            a
            for n in sorted(names or ())
            if n in self.machine.checked.tiles
            for a in self.machine.checked.tiles[n].axes
            if a.name not in indices
        }:
            place = self._place_of(axis)
            if place is not None:
                indices[axis.name] = place + np.arange(axis.size)
        environment = Environment(self.ints, self.machine.scalars, tiles, indices, self.machine.named, emitted=True)
        environment.orders = self.machine.orders
        return environment

    def _place_of(self, axis: Axis) -> int | None:
        """Find where an axis begins from a shared tile that lies whole along it: a loop that never ran gave no
        place."""
        starts = {
            slot.origin[axis.name]
            for name, slots in self.block.shared.items()
            for slot in slots
            if axis in self.machine.checked.tiles[name].axes and axis.name in slot.origin
        }
        return starts.pop() if len(starts) == 1 else None

    def evaluate(self, e: s.Expr, environment: Environment, span: Span) -> Value:
        """Evaluate over an environment; an axis whose place no Copy has given yet cannot be an index."""
        try:
            return environment.evaluate(e)
        except KeyError as missing:
            raise Fault(
                "TL105",
                e.span if e.span.line else span,
                f"{missing.args[0]} has no place here: no tile along it was copied yet",
                "Copy what it indexes to a register, along that axis: it broadcasts by its name",
            ) from None

    def read_register(self, name: str, span: Span) -> Register:
        """Give a register tile, whose GEMM must be over."""
        register = self.registers.get(name)
        if register is None:
            raise Fault(
                "TL204",
                span,
                f"tile {name} is read, but no line has filled it on this path",
                f"give {name} an initial value in its Allocate, or fill it before the loop or branch",
            )
        if register.pending:
            raise Fault(
                "TL406",
                span,
                f"{name} is read while the asynchronous GEMM that makes it may still run",
                "put `Wait gemm pending ...` before this line",
            )
        return register

    def write_register(
        self, name: str, data: Array | None, origin: dict[str, int], span: Span, ends: dict[str, Outside]
    ) -> None:
        """Replace a register tile's content."""
        self.check_free(name, span)
        kind = self.machine.checked.tiles[name]
        if data is not None:
            data = round_to(data, kind.dtype)
        self.registers[name] = Register(data, origin, ends)

    def check_free(self, name: str, span: Span) -> None:
        """Raise a fault if a register tile may not be overwritten yet."""
        pending = name in self.registers and self.registers[name].pending
        if pending or any(name in g.operands for g in self.gemms):
            verb = "write" if pending else "read"
            raise Fault(
                "TL406",
                span,
                f"{name} is overwritten while an asynchronous GEMM may still {verb} it",
                "put `Wait gemm pending ...` before this line",
            )

    # -------------------------------------------------------------- shared memory
    def slot(self, name: str, e: s.Expr | None, span: Span, end: str = "consumer") -> Slot:
        """Give the stage of a shared tile that a statement means."""
        kind = self.machine.checked.tiles[name]
        slots = self.block.shared[kind.view or name]
        if e is not None:
            n = self.integer(e, span)
            if not 0 <= n < len(slots):
                raise Fault(
                    "TL408",
                    span,
                    f"slot {n} of {name} does not exist, it has {len(slots)} stage(s)",
                    f"take the slot modulo {len(slots)}",
                )
            return slots[n]
        return slots[self.cursor.get((kind.view or name, end), 0) % len(slots)]


@dataclass(frozen=True, slots=True)
class Reads:
    """What a Compute reads: all names, and those inside of each reduction."""

    names: frozenset[str]
    reduced: tuple[tuple[s.Call, frozenset[str]], ...]
    chooses: bool  # whether a where is in it


@dataclass
class Machine:
    """A checked program with the values of one call."""

    checked: Checked
    sizes: dict[str, int]
    scalars: dict[str, float]
    tensors: dict[str, Array]  # inputs and outputs by name
    seed: int = 0
    numeric: bool = True  # False: control flow, memory states and coverage only
    written: dict[str, Array] = field(default_factory=dict)  # how often each output element was stored
    contracted: list[Contraction] = field(default_factory=list)  # accumulating GEMMs of a block
    steps_left: int | None = None  # None: as many as it takes

    def __post_init__(self) -> None:
        """Prepare what all blocks share."""
        self.random = random.Random(self.seed)
        self.concurrent = self.checked.level == "scheduled"
        copies = [n for n in _inside(self.checked.kernel.body) if isinstance(n, s.Copy)]
        self.rings = {n.signals.split(".")[0] for n in copies if n.signals is not None}
        self.orders = {
            frozenset(t.axis_names): t.axis_names
            for t in self.checked.tiles.values()
            if t.space == "register" and len(t.axes) == 2
        }
        self.named = {n: (a, self.checked.tensors[n].dtype) for n, a in self.tensors.items()}
        self._reads: dict[int, Reads] = {}  # by statement: a loop runs one many times
        self._names: dict[int, frozenset[str]] = {}  # by expression

    def reads(self, n: s.Compute) -> Reads:
        """Give what a Compute reads, worked out once."""
        found = self._reads.get(id(n))
        if found is None:
            calls = [e for e in expressions(n.value) if isinstance(e, s.Call) and e.function in REDUCTIONS]
            reduced = tuple((e, frozenset(names_in(e.args))) for e in calls)
            chooses = any(isinstance(e, s.Call) and e.function == "where" for e in expressions(n.value))
            found = self._reads[id(n)] = Reads(frozenset(names_in(n.value)), reduced, chooses)
        return found

    def names(self, e: s.Expr) -> frozenset[str]:
        """Give the names in a part of a Compute, worked out once."""
        found = self._names.get(id(e))
        if found is None:
            found = self._names[id(e)] = frozenset(names_in(e))
        return found

    def spend(self, elements: int = 0) -> None:
        """Count a step, or as many as a statement takes that touches so many elements."""
        if self.steps_left is not None:
            self.steps_left -= 1 + elements // ELEMENTS_A_STEP
            if self.steps_left < 0:
                raise Unfinished

    def run_block(self, index: dict[str, int]) -> None:
        """Run one block of threads to its end."""
        block = Block(self, index)
        for tile in self.checked.tiles.values():
            if tile.space == "shared" and tile.view is None:
                block.shared[tile.name] = [Slot() for _ in range(tile.stages)]
        self.contracted.clear()
        main = Strand(self, block, {**self.sizes, **self.checked.fixed, **index})
        roles = [n for n in self.checked.kernel.body if isinstance(n, s.Role)]
        before = tuple(n for n in self.checked.kernel.body if not isinstance(n, s.Role))
        self._drive(block, [(main, execute(before, main))])
        if roles:
            block.strands = 0
            runs = [self._start(role, strand) for role in roles for strand in self._instances(role, main)]
            block.strands = len(runs)
            self._drive(block, runs)
            self._check_settled([strand for strand, _ in runs])
        else:
            self._check_settled([main])

    def _check_settled(self, strands: list[Strand]) -> None:
        """At the end of a block nothing may be on its way, and every fill of a ring must have been used."""
        for t in strands:
            who = f"{t.name} {t.instance}".strip() if t.name else "the block"
            if t.stores:
                name, _, place = t.stores[-1]
                raise Fault(
                    "TL404",
                    place,
                    f"{who} ends while an asynchronous store may still read {name}",
                    "put `Wait stores pending 0` behind the last store",
                )
            for ring in sorted(t.consumes & self.rings):
                fills = max(x.cursor.get((ring, "producer"), 0) for x in strands)
                uses = t.cursor.get((ring, "consumer"), 0)
                if uses != fills:
                    raise Fault(
                        "TL404",
                        t.places.get(ring, Span()),
                        f"{ring} was filled {fills} time(s), but {who} released it {uses} time(s)",
                        f"pair each fill with one `Wait {ring}.full` and one `Release {ring}`",
                    )

    def persistent_tiles(self, _: dict[str, int]) -> Iterator[dict[str, int]]:
        """Give the points of the grid that a persistent block visits; here one block visits all, in the grid's
        order."""
        ints = {**self.sizes, **self.checked.fixed}
        dims = self.checked.grid.dims[::-1]  # the first index varies fastest
        ranges = [range(integer(d.start, ints), integer(d.stop, ints)) for d in dims]
        for point in product(*[r[::-1] if d.down else r for d, r in zip(dims, ranges, strict=True)]):
            self.spend()
            yield {d.name: v for d, v in zip(dims, point, strict=True)}

    def _instances(self, role: s.Role, main: Strand) -> list[Strand]:
        span = role.range
        numbers = range(main.integer(span.start, role.span), main.integer(span.stop, role.span)) if span else range(1)
        ends = [n for n in _inside(role.body) if isinstance(n, s.Release | s.Wait)]
        rings = frozenset(n.ring for n in ends if n.ring and not (isinstance(n, s.Wait) and n.kind == "empty"))
        strands = []
        for n in numbers:
            ints = {**main.ints, **({role.var: n} if role.var else {})}
            registers = {
                k: Register(v.data, dict(v.origin), dict(v.ends), zeros=v.zeros) for k, v in main.registers.items()
            }
            strand = Strand(self, main.block, ints, registers, consumes=rings, instance=n, name=role.name)
            strands.append(strand)
        for ring in rings:
            main.block.consumers[ring] = main.block.consumers.get(ring, 0) + len(strands)
        if any(isinstance(n, s.PassTurn) for n in _inside(role.body)):
            main.block.turns = len(strands)
        return strands

    def _start(self, role: s.Role, strand: Strand) -> tuple[Strand, Generator[Span | None, None, None]]:
        return strand, execute(role.body, strand)

    def _drive(self, block: Block, runs: list[tuple[Strand, Generator[Span | None, None, None]]]) -> None:
        """Advance the strands in random order until all are done; a block in which none can move is deadlocked."""
        waiting: dict[int, Span] = {}
        idle = 0
        alive = list(range(len(runs)))
        while alive:
            pick = self.random.choice(alive) if len(alive) > 1 else alive[0]
            try:
                place = next(runs[pick][1])
            except StopIteration:
                alive.remove(pick)
                idle = 0
                continue
            if place is None:
                idle = 0
            else:
                waiting[pick] = place
                idle += 1
            if block.arrivals and (idle > 2 * len(alive) or self.random.random() < 0.3):
                block.arrivals.pop(self.random.randrange(len(block.arrivals)))()
                idle = 0
            if idle > STEPS_BETWEEN_PROGRESS or (idle > 0 and len(alive) == 1 and not block.arrivals):
                where = waiting.get(pick, Span())
                others = ", ".join(f"line {waiting[n].line}" for n in alive if n in waiting)
                raise Fault(
                    "TL409",
                    where,
                    f"deadlock: every strand waits ({others})",
                    "signal or release what is waited for, on every path",
                )


def _inside(body: tuple[s.Statement, ...]) -> list[s.Statement]:
    from qimeng_attention.tl.traverse import statements

    return list(statements(body))


def execute(body: tuple[s.Statement, ...], strand: Strand) -> Generator[Span | None, None, None]:
    """Run statements; yields a place while blocked there, and None between statements where strands interleave."""
    from qimeng_attention.tl.statements import TABLE

    for n in body:
        strand.machine.spend()
        result = TABLE[type(n)].run(n, strand)
        if result is not None:
            yield from result
        if strand.block.strands > 1:
            yield None


RunResult = Generator[Span | None, None, None] | None


def tile_type(strand: Strand, name: str) -> TileType:
    """Give the type of a tile."""
    return strand.machine.checked.tiles[name]


def no_value(*_: Any) -> None:
    """Stand for the run of a declaration."""
