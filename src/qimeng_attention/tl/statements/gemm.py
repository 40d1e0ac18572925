"""Compute GEMM: a matrix product of two tiles on the tensor cores. `.T` is symbolic: it says which index is
contracted."""

from __future__ import annotations

import difflib
from dataclasses import replace

import numpy as np

from qimeng_attention.errors import Span
from qimeng_attention.targets.atoms import mma_atoms
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.machine import Contraction, Fault, InFlight, Outside, Register, Slot, Strand
from qimeng_attention.tl.numerics import BOOL, BYTES, Array
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.traverse import add, statements
from qimeng_attention.tl.types import Axis, Origin, TileType, same_axes, same_sizes

ROWS_AN_MMA = 16

# ------------------------------------------------------------------ legality


def _report_missing(o: s.Operand, span: Span, scope: Scope, side: str) -> None:
    """Say how to get an operand that is no tile yet: by Copy, by Reshape of a result, or under its right name."""
    results = [t.name for t in scope.tiles.values() if t.space == "register" and t.role == "MMA_C" and len(t.axes) == 2]
    if o.name in scope.tensors:
        message = f"{o.name} lies in global memory, GEMM reads shared memory or registers"
        scope.report("TL207", span, message, f"Copy {o.name} to shared first")
    elif side == "A" and results and not difflib.get_close_matches(o.name, scope.tiles, n=1, cutoff=0.6):
        made = f"Reshape {results[0]} from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get {o.name}"
        scope.report("TL101", span, f"unknown tile '{o.name}'", f"if it is a result turned into an operand: `{made}`")
    else:
        scope.unknown(o.name, span, [*scope.tiles, *scope.tensors], "tile")


def _operand(o: s.Operand, n: s.Gemm, scope: Scope, side: str) -> tuple[Axis, Axis] | None:
    """Check one operand and give its axes as the product sees them."""
    span = o.span if o.span.line else n.span
    tile = scope.tiles.get(o.name)
    if tile is None and o.name in scope.broken:
        return None
    if tile is None:
        _report_missing(o, span, scope, side)
        return None
    if o.name not in scope.filled and tile.view not in scope.filled:
        scope.report(
            "TL204",
            span,
            f"tile {o.name} is read before anything fills it",
            f"Copy {o.name} to shared before this line",
        )
    if len(tile.axes) != 2:
        scope.report(
            "TL106",
            span,
            f"GEMM takes tiles with two axes, {o.name} is {tile.describe()}",
            "vectors need no GEMM",
        )
        return None
    if tile.space == "register":
        _check_register_operand(o, tile, scope, side)
    if (BYTES[tile.dtype] > 2 or tile.dtype in ("u8", BOOL)) and not (
        tile.space == "register" and tile.role == "MMA_C"
    ):
        scope.report(
            "TL104",
            span,
            f"GEMM multiplies 8- and 16-bit floating types, {o.name} is {tile.dtype}",
            "Reshape it `as` the other operand's type",
        )
    needed = {"bf16": "bf16", "e4m3": "fp8", "e5m2": "fp8"}.get(tile.dtype)
    if needed is not None:
        scope.require(needed, span, f"a GEMM of {tile.dtype} tiles", "take fp16, or name a newer target")
    axes = tile.axes
    if o.rows is not None:
        for e in (o.rows.start, o.rows.stop):
            scope.uniform_integer(e, span, f"a row of {o.name}")
        size = _extent(o.rows, scope)
        if axes[0].size and (size is None or not 1 <= size <= axes[0].size):
            scope.report(
                "TL106",
                span,
                f"the rows of {o.name} must be a stretch of fixed length within {axes[0].size}, "
                f"found {expression(o.rows.start)} : {expression(o.rows.stop)}",
                "write `[w * 64 : (w + 1) * 64]`",
            )
        axes = (Axis(axes[0].name, size or 0), axes[1])
    if o.slot is not None:
        scope.uniform_integer(o.slot, span, f"the slot of {o.name}")
        if tile.space != "shared":
            scope.report("TL207", span, f"{o.name} lies in registers, which have no slots", "remove `slot ...`")
    for axis, e in o.at:
        scope.uniform_integer(e, span, f"the origin of {o.name} along {axis}")
    return (axes[1], axes[0]) if o.transposed else (axes[0], axes[1])


def _extent(r: s.Range, scope: Scope) -> int | None:
    """Give the length of `w * 64 : (w + 1) * 64` although w is not fixed: the difference at two values of each name."""
    from qimeng_attention.tl.evaluate import integer
    from qimeng_attention.tl.traverse import names_in

    free = sorted((names_in(r.start) | names_in(r.stop)) - set(scope.fixed))
    try:
        lengths = {
            integer(r.stop, v) - integer(r.start, v)
            for v in ({**scope.fixed, **dict.fromkeys(free, x)} for x in (0, 1, 5))
        }
    except (KeyError, ValueError, ZeroDivisionError):
        return None
    return lengths.pop() if len(lengths) == 1 else None


def _check_register_operand(o: s.Operand, tile: TileType, scope: Scope, side: str) -> None:
    if side == "B":
        scope.report(
            "TL207",
            o.span,
            f"the second operand of GEMM comes from shared memory, {o.name} lies in registers",
            "exchange the operands, or Copy it to shared",
        )
    elif tile.role == "MMA_C":
        scope.report(
            "TL201",
            o.span,
            f"{o.name} has the role {tile.role} of a result, GEMM reads the role MMA_A of an operand",
            f"put `Reshape {o.name} from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as "
            "bf16 and get P` "
            "just before this line and multiply P",
        )


def _check(n: s.Gemm, scope: Scope) -> None:
    if n.asynchronous:
        scope.require("wgmma", n.span, "an asynchronous GEMM", "remove `async`")
    a, b = _operand(n.a, n, scope, "A"), _operand(n.b, n, scope, "B")
    if a is None or b is None:
        if n.out in scope.tiles:
            scope.filled.add(n.out)
        else:
            scope.broken.add(n.out)
        return
    ta, tb = scope.tiles[n.a.name], scope.tiles[n.b.name]
    if ta.dtype != tb.dtype and BYTES[ta.dtype] <= 2 and BYTES[tb.dtype] <= 2:
        scope.report(
            "TL104",
            n.span,
            f"the operands' types differ: {n.a.name} is {ta.dtype}, {n.b.name} is {tb.dtype}",
            f"give the Reshape of {n.a.name} `as {tb.dtype}`",
        )
    if a[1].name != b[0].name:
        a, b = _report_contraction(n, a, b, scope)
        _result(n, (a[0], b[1]), scope)
        return
    if not same_sizes(a[1:], b[:1]):
        scope.report(
            "TL106",
            n.span,
            f"GEMM sums over {a[1].name}, which has {a[1].size} elements in {n.a.name} and {b[0].size} in {n.b.name}",
            "give both tiles the same extent along it",
        )
    if a[0].name == b[1].name:
        scope.report("TL105", n.span, f"both axes of the result are named {a[0].name}", "name the operands' axes apart")
    _check_atom(n, ta.dtype, (a[0], b[1], a[1]), scope)
    _result(n, (a[0], b[1]), scope)


def _check_atom(n: s.Gemm, dtype: str, axes: tuple[Axis, Axis, Axis], scope: Scope) -> None:
    """Report a product that no MMA atom of the target computes: its type, or a shape that is no multiple."""
    if scope.target is None or BYTES[dtype] > 2:
        return
    if n.asynchronous and "wgmma" not in scope.target.capabilities:
        scope.report("TL504", n.span, f"{scope.target.name} has no asynchronous GEMM (wgmma)", "remove `async`")
    kind = "fp8" if dtype in ("e4m3", "e5m2") else dtype
    atoms = [a for a in mma_atoms(scope.target) if a.dtype == kind]
    if not atoms:
        return  # the type is refused at the operand
    for axis, what, step in zip(
        axes,
        ("rows", "columns", "summed elements"),
        (min(a.m for a in atoms), min(a.n for a in atoms), min(a.k for a in atoms)),
        strict=True,
    ):
        if axis.size % step:
            scope.report(
                "TL503",
                n.span,
                f"the product has {axis.size} {what} along {axis.name}, {atoms[0].name} takes multiples of {step}",
                f"take a tile of {-(-axis.size // step) * step} along {axis.name}: what lies past the end reads as 0",
            )


def _report_contraction(
    n: s.Gemm, a: tuple[Axis, Axis], b: tuple[Axis, Axis], scope: Scope
) -> tuple[tuple[Axis, Axis], tuple[Axis, Axis]]:
    """Say which operand's `.T` is missing, or is one too many (the paper's second failure mode).

    Gives the operands' axes as they would be then, so that what follows can be checked.
    """
    turned = replace(n.b, transposed=not n.b.transposed, span=n.b.span)
    if b[1].name == a[1].name:
        code, why = ("TL202", "is missing") if turned.transposed else ("TL203", "is one too many")
        scope.report(
            code,
            n.b.span,
            f"GEMM sums over {a[1].name} of {n.a.name}, but {_shown(n.b)} begins with {b[0].name}: `.T` {why}",
            f"write {_shown(turned)}; `.T` is symbolic and says which index is summed, memory stays as it is",
        )
        return a, (b[1], b[0])
    if a[0].name == b[0].name:
        other = replace(n.a, transposed=not n.a.transposed)
        scope.report(
            "TL202" if other.transposed else "TL203",
            n.a.span,
            f"GEMM sums over {b[0].name} of {_shown(n.b)}, but {_shown(n.a)} ends with {a[1].name}",
            f"write {_shown(other)}; `.T` is symbolic and says which index is summed",
        )
        return (a[1], a[0]), b
    if not {x.name for x in (*a, *b)} & scope.broken:
        scope.report(
            "TL105",
            n.span,
            f"the operands' axes clash: {_shown(n.a)} has ({a[0].name}, "
            f"{a[1].name}), "
            f"{_shown(n.b)} has ({b[0].name}, {b[1].name}), expected the last of the first to "
            "be the first of "
            "the "
            "second",
            "check the axes that each operand's Copy gave it",
        )
    return a, b


def _shown(o: s.Operand) -> str:
    return o.name + ".T" * o.transposed


def _result(n: s.Gemm, axes: tuple[Axis, Axis], scope: Scope) -> None:
    out = scope.tiles.get(n.out)
    if out is None:
        if n.accumulate:
            scope.unknown(n.out, n.span, list(scope.tiles), "tile")
        scope.claim(n.out, n.span)
        out = scope.tiles[n.out] = TileType(n.out, "register", "f32", axes)
    elif out.space != "register" or out.dtype != "f32" or out.role != "MMA_C":
        scope.report(
            "TL207",
            n.span,
            f"GEMM writes an f32 accumulator in registers, {n.out} is {out.describe()} in {out.space} memory",
            "allocate the result as f32 in register",
        )
    elif not same_axes(out.axes, axes):
        found = f"({axes[0].size} {axes[0].name}, {axes[1].size} {axes[1].name})"
        code = "TL105" if out.axis_names != (axes[0].name, axes[1].name) else "TL106"
        scope.report(
            code,
            n.span,
            f"the product is {found}, but {n.out} is {out.describe()}",
            f"allocate {n.out} as {found}",
        )
    if n.accumulate and n.out not in scope.filled:
        scope.report(
            "TL204",
            n.span,
            f"{n.out} is accumulated into before it has a value",
            f"allocate {n.out} with `= 0`",
        )
    scope.filled.add(n.out)
    origins: dict[str, Origin] = {}
    for o in (n.a, n.b):
        known = dict(scope.origins.get(o.name, {}))
        for axis, e in o.at:
            known[axis] = Origin(e, known[axis].limit if axis in known else None)
        if o.rows is not None and o.name in scope.tiles:
            first = scope.tiles[o.name].axes[0].name
            if first in known:
                known[first] = Origin(add(known[first].start, o.rows.start), known[first].limit)
        origins |= known
    kept = {axes[0].name, axes[1].name}
    made: dict[str, Origin] = {a: o for a, o in origins.items() if a in kept}
    scope.origins[n.out] = {**made, **scope.origins.get(n.out, {})} if n.accumulate else made


# ------------------------------------------------------------------ meaning


def _fetch(o: s.Operand, n: s.Gemm, t: Strand) -> tuple[Array | None, dict[str, int], Slot | None, dict[str, Outside]]:
    """Give an operand's elements as the product sees them, where they lie, the slot read, and where they end."""
    kind = t.machine.checked.tiles[o.name]
    span = o.span if o.span.line else n.span
    held: Slot | Register
    if kind.space == "register":
        held, slot = t.read_register(o.name, span), None
    else:
        held = slot = t.slot(o.name, o.slot, span)
        check_readable(slot, o.name, span, t)
    origin, data = dict(held.origin), held.data
    for axis, e in o.at:
        said = t.integer(e, span)
        if origin.get(axis, said) != said:
            raise Fault(
                "TL407",
                span,
                f"{o.name} holds {axis} = {origin[axis]}, this line expects {axis} = {said}",
                "prefetch and use of the ring are out of step: compare the slots and the coordinates",
            )
    if data is not None and kind.view:
        data = data[: kind.axes[0].size, : kind.axes[1].size]
    if o.rows is not None:
        start, stop = t.integer(o.rows.start, span), t.integer(o.rows.stop, span)
        if not 0 <= start < stop <= kind.axes[0].size:
            raise Fault(
                "TL408",
                span,
                f"{o.name} has {kind.axes[0].size} rows, this line reads {start} : {stop}",
                "keep the stretch within the tile",
            )
        data = None if data is None else data[start:stop]
        first = kind.axes[0].name
        if first in origin:
            origin[first] += start
    return (data.T if data is not None and o.transposed else data), origin, slot, held.ends


def check_readable(slot: Slot, name: str, place: Span, t: Strand) -> None:
    """Raise a fault if a stage of shared memory may not be read here; note the read."""
    kind = t.machine.checked.tiles[name]
    ring = kind.view or name
    waited = t.waited.get(ring, 0) > t.cursor.get((ring, "consumer"), 0)
    if t.machine.concurrent and not waited and (slot.state == "in flight" or ring in t.machine.rings):
        raise Fault(
            "TL402",
            place,
            f"{name} is read while its copy may still be in flight",
            "put `Wait copies pending ...`, or `Wait ring.full`, before this line",
        )
    if slot.state == "empty":
        raise Fault(
            "TL401",
            place,
            f"{name} is read before anything fills this slot",
            "Copy it before, and count the slots alike",
        )
    foreign = slot.writer is not None and slot.writer is not t and slot.writer.name != ""
    if t.machine.concurrent and (slot.state == "landed" or foreign):
        raise Fault(
            "TL403",
            place,
            f"{name} is read before the other warps' part of it can be seen",
            "put `Barrier` before this line",
        )
    slot.read = True


def _run(n: s.Gemm, t: Strand) -> None:
    a, where_a, slot_a, ends_a = _fetch(n.a, n, t)
    b, where_b, slot_b, ends_b = _fetch(n.b, n, t)
    kind = t.machine.checked.tiles[n.out]
    kept = {x.name for x in kind.axes}
    origin = {k: v for k, v in {**where_a, **where_b}.items() if k in kept}
    ends = {k: v for k, v in {**ends_a, **ends_b}.items() if k in kept}
    summed = ends_a.keys() - kept
    if slot_a is None and summed and not t.registers[n.a.name].zeros:
        unmasked(n.a.name, summed.pop(), "this GEMM sums over them", n.span, t)
    _check_contraction(n, t, where_a, where_b)
    _note_contraction(n, t, where_a, where_b)
    result = None
    if a is not None and b is not None:
        with np.errstate(all="ignore"):
            result = _product(a.astype(np.float32), b.astype(np.float32))
    if n.accumulate:
        before = t.registers[n.out] if n.asynchronous and _in_flight(n.out, t) else t.read_register(n.out, n.span)
        if result is not None and before.data is not None:
            result = before.data + result
        origin = before.origin or origin
    if n.asynchronous:
        slots = [slot for slot in (slot_a, slot_b) if slot is not None]
        _issue(n, slots, t)
        t.registers[n.out] = Register(result, origin, ends, pending=True)
    else:
        t.write_register(n.out, result, origin, n.span, ends)


def _product(a: Array, b: Array) -> Array:
    """Multiply in blocks of rows, so that a row's sums do not depend on how many rows a statement works on."""
    if len(a) % ROWS_AN_MMA or len(a) == ROWS_AN_MMA:
        return np.asarray(np.matmul(a, b))
    blocks = np.matmul(a.reshape(-1, ROWS_AN_MMA, a.shape[1]), b)
    return np.asarray(blocks.reshape(len(a), b.shape[1]))


def _issue(n: s.Gemm, slots: list[Slot], t: Strand) -> None:
    """Note what an asynchronous GEMM reads and writes until it is waited for."""
    if any(n.out in g.operands for g in t.gemms):
        t.check_free(n.out, n.span)
    if not all(slot.fenced for slot in slots):
        raise Fault(
            "TL412",
            n.span,
            "the tensor cores may not see what the threads wrote to shared memory",
            "put `Fence async` and `Barrier` between the write and this line",
        )
    for slot in slots:
        slot.reading += 1
    held = tuple(o.name for o in (n.a, n.b) if t.machine.checked.tiles[o.name].space == "register")
    t.gemms.append(InFlight(n.out, slots, held))


def unmasked(name: str, axis: str, what: str, span: Span, t: Strand) -> None:
    """Raise TL205: columns past the tensor's end reach something that sums or compares them."""
    condition = f"{axis} < {_limit(axis, t)}"
    made = _made_by(name, span, t)
    # a Mask above does not reach a factor that comes later; a 0 in the product does, where nothing takes its greatest
    if made is not None and isinstance(made.value, s.Binary) and made.value.op == "*" and what != "RowMax":
        product, out = expression(made.value), "new " * made.new + made.out
        raise Fault(
            "TL205",
            span,
            f"{name} holds columns past the end along {axis} that no mask removes before {what}",
            f"hide the product itself: Compute where({condition}, {product}, 0) and get {out}",
        )
    raise Fault(
        "TL205",
        span,
        f"{name} holds columns past the end along {axis} that no mask removes before {what}",
        f"add `{condition}` to a Mask above this line",
    )


def _made_by(name: str, span: Span, t: Strand) -> s.Compute | None:
    """Give the Compute that made a tile as it is at a line; None where something else wrote it last."""
    above = [n for n in statements(t.machine.checked.kernel.body) if n.span < span]
    for n in reversed(above):
        if isinstance(n, s.Reshape) and (n.out or n.name) == name:
            name = n.name
        elif isinstance(n, s.Compute) and n.out == name:
            return n
        elif name in (getattr(n, "out", None), getattr(n, "tile", None)):
            return None
    return None


def _limit(axis: str, t: Strand) -> str:
    """Give the extent of the dimension an axis walks along, as the program writes it."""
    for n in statements(t.machine.checked.kernel.body):
        if isinstance(n, s.Copy) and n.source == "global":
            tensor = t.machine.checked.tensors[n.name]
            for c, dim in zip(n.coordinate, tensor.dims, strict=False):
                if c.axis == axis:
                    return expression(dim if c.stop is None else c.stop)
    return "the end"


def _in_flight(name: str, t: Strand) -> bool:
    """Tell whether the tile's own earlier GEMM is in flight: accumulations into one tile follow in order."""
    return any(g.out == name for g in t.gemms)


def _check_contraction(n: s.Gemm, t: Strand, where_a: dict[str, int], where_b: dict[str, int]) -> None:
    """What is multiplied and summed must lie at the same place along the axis summed over."""
    kind = t.machine.checked.tiles[n.a.name]
    axis = kind.axes[0 if n.a.transposed else 1].name
    a, b = where_a.get(axis), where_b.get(axis)
    if a is not None and b is not None and a != b:
        raise Fault(
            "TL407",
            n.span,
            f"GEMM sums over {axis}, which begins at {a} in {n.a.name} and at {b} in {n.b.name}",
            "copy and use tiles of one place together: compare coordinates, slots and the order of the rings",
        )


def _note_contraction(n: s.Gemm, t: Strand, where_a: dict[str, int], where_b: dict[str, int]) -> None:
    """Remember which stretch an accumulating GEMM summed over, for the check that loops miss and repeat no tile."""
    kind = t.machine.checked.tiles[n.b.name]
    axis = kind.axes[1] if n.b.transposed else kind.axes[0]
    if n.accumulate and axis.name in where_b:
        t.machine.contracted.append(Contraction(n.span, t.instance, axis.name, where_b[axis.name], axis.size))


RULES = {
    s.Gemm: Rule(
        "GEMM",
        "Compute",
        "Compute GEMM Q, K.T and get S",
        "Multiplies two tiles on the tensor cores into an f32 accumulator; sums over the last axis of "
        "the first and "
        "the "
        "first of "
        "the second.",
        _check,
        _run,
        "sketch",
    ),
}
