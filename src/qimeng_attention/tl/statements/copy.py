"""Copy: moves a tile between memories. A tile past its tensor's end is filled with 0 and never written there (rule
4)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import CoordinateError, Place, copy_target, copy_tensor, places
from qimeng_attention.tl.machine import Block, Fault, Slot, Strand
from qimeng_attention.tl.numerics import BYTES, Array, round_to
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.gathers import check_along, picked, rows_past
from qimeng_attention.tl.statements.gemm import check_readable
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.types import Axis, Origin, TensorType, TileType, same_axes

LEGAL = {
    ("global", "shared"),
    ("global", "register"),
    ("shared", "register"),
    ("register", "shared"),
    ("register", "global"),
    ("shared", "global"),
}


# ------------------------------------------------------------------ legality


def _check(n: s.Copy, scope: Scope) -> None:
    if (n.source, n.target) not in LEGAL:
        scope.report(
            "TL207",
            n.span,
            f"no Copy goes from {n.source} to {n.target} memory, expected two different memories",
            "write `from global to shared`, or another pair",
        )
        return
    if n.slot is not None:
        scope.uniform_integer(n.slot, n.span, f"the slot of {n.name}")
    if n.accumulate and n.target != "global":
        scope.report(
            "TL207",
            n.span,
            f"`accumulate` adds to global memory, this Copy goes to {n.target}",
            "remove it, or accumulate with Compute",
        )
    _check_asynchronous(n, scope)
    if n.source == "global":
        _check_load(n, scope)
    elif n.target == "global":
        _check_store(n, scope)
    else:
        _check_on_chip(n, scope)


def _check_asynchronous(n: s.Copy, scope: Scope) -> None:
    if not n.asynchronous:
        return
    if (n.source, n.target) not in (("global", "shared"), ("shared", "global")):
        scope.report("TL207", n.span, f"a Copy from {n.source} to {n.target} cannot be asynchronous", "remove `async`")
    if n.target == "global":
        scope.require("tma", n.span, "an asynchronous store", "remove `async`")
    needed = "async copy" if n.signals is None else "mbarrier"
    if scope.target is not None and needed not in scope.target.capabilities:
        what = "asynchronous copy" if n.signals is None else "barrier that a copy signals (mbarrier)"
        way = "remove `async`, or the choice `copies async`" if n.signals is None else "use `Wait copies pending ...`"
        scope.report("TL504", n.span, f"{scope.target.name} has no {what}", way)
    if n.signals is not None:
        ring, end = n.signals.split(".")
        scope.rings.add(ring)
        base = scope.tiles[copy_target(n)].view if copy_target(n) in scope.tiles else None
        if (ring, end) != (base or copy_target(n), "full"):
            scope.report(
                "TL207",
                n.span,
                f"a Copy into {copy_target(n)} signals {copy_target(n)}.full, found {n.signals}",
                f"write `async signals {base or copy_target(n)}.full`",
            )


def tile_places(n: s.Copy, tensor: TensorType, scope: Scope) -> list[Place] | None:
    """Read the coordinate of a Copy to or from global memory, or report TL110."""
    if not n.dims:
        scope.report(
            "TL110",
            n.span,
            f"Copy {n.name} has no shape and coordinate",
            f"write `(BM, D) in coordinate [batch, q = block * BM, head]`; a single number needs no Copy: "
            f"`{n.name}[head]` in an expression reads it",
        )
        return None
    if any(d.start is not None for d in n.dims):
        scope.report("TL110", n.span, f"the shape of Copy {n.name} says where it begins", "say it in the coordinate")
    extents = [scope.extent(d.size, n.span, f"extent {expression(d.size)}") for d in n.dims]
    try:
        found = places(n, extents, tensor.axis_names)
    except CoordinateError as error:
        scope.report("TL110", n.span, str(error), error.hint)
        return None
    sizes = {p.axis: p.size for p in found}
    for p, dim in zip(found, tensor.dims, strict=True):
        for e in (p.start, p.stop):
            if p.along:
                check_along(p, n, scope, sizes[p.along])
            elif e is not None:
                scope.uniform_integer(e, n.span, f"the coordinate {p.axis or expression(e)} of {n.name}")
        if p.at is not None and scope.type_of(p.at, n.span, {p.axis: p.size}).kind not in ("int", "any"):
            scope.report(
                "TL107",
                n.span,
                f"the place behind `at` must be an integer, found {expression(p.at)}",
                "use sizes, indices and elements of integer tensors",
            )
        whole = scope.constant(dim)
        if p.kind == "whole" and whole is not None and p.size and whole != p.size:
            scope.report(
                "TL106",
                n.span,
                f"{tensor.name} has {whole} elements along {p.axis}, the Copy takes {p.size}",
                "take the whole axis, or name it in the coordinate; a tile lies as its tensor does: `.T` is symbolic",
            )
            found = [replace(x, size=0) for x in found]  # what follows from the wrong shape is not told
    return found


def _check_shape(n: s.Copy, axes: tuple[Axis, ...], scope: Scope) -> bool:
    """Report a tile that is neither a vector nor a matrix."""
    if not 1 <= len(axes) <= 2:
        scope.report(
            "TL106",
            n.span,
            f"this Copy moves a tile with {len(axes)} axes, expected one or two",
            "give the other dimensions a single index, as `[batch, q = block * BM, head]`",
        )
    elif len({a.name for a in axes}) != len(axes):
        scope.report("TL105", n.span, f"both axes of this tile are named {axes[0].name}", "name them apart")
    else:
        return True
    return False


def _axes(found: list[Place]) -> tuple[Axis, ...]:
    return tuple(Axis(p.axis, p.size) for p in found if p.kind != "index")


def _check_load(n: s.Copy, scope: Scope) -> None:
    if not _loads(n, scope) and copy_target(n) not in scope.tiles:
        scope.broken.add(copy_target(n))


def _loads(n: s.Copy, scope: Scope) -> bool:
    """Check a Copy from global memory; tell whether it makes a tile."""
    tensor = scope.tensors.get(n.name)
    if tensor is None:
        scope.unknown(n.name, n.span, list(scope.tensors), "tensor")
        return False
    if n.name not in scope.read:
        scope.read.append(n.name)
    found = tile_places(n, tensor, scope)
    if found is None:
        return False
    name, axes = copy_target(n), _axes(found)
    if not _check_shape(n, axes, scope):
        return False
    tile = scope.tiles.get(name)
    if tile is None:
        scope.claim(name, n.span)
        tile = scope.tiles[name] = TileType(name, n.target, tensor.dtype, axes)
    elif not same_axes(tile.axes, axes) or tile.space != n.target:
        code = "TL105" if tile.axis_names != tuple(a.name for a in axes) else "TL106"
        shape = f"({', '.join(f'{a.size} {a.name}' for a in axes)})"
        scope.report(
            code,
            n.span,
            f"this Copy brings {shape} to {n.target}, but {name} is {tile.describe()} in {tile.space} memory",
            "allocate the tile as its tensor lies in memory; `.T` at the GEMM turns it",
        )
    elif tile.dtype != tensor.dtype:
        scope.report(
            "TL104",
            n.span,
            f"{tensor.name} is {tensor.dtype}, the tile {name} is {tile.dtype}",
            "only Reshape and a Copy out of registers change type",
        )
    scope.filled.add(name)
    for view in [t.name for t in scope.tiles.values() if t.view == name]:
        scope.filled.add(view)
    for target in [name, *[t.name for t in scope.tiles.values() if t.view == name]]:
        pairs = [(p, d) for p, d in zip(found, tensor.dims, strict=True) if p.kind != "index"]
        scope.origins[target] = {p.axis: Origin(p.start, p.stop or d) for p, d in pairs}
    return True


def _check_source(n: s.Copy, scope: Scope) -> TileType | None:
    tile = scope.tiles.get(n.name)
    if tile is None or tile.space != n.source:
        held = [t.name for t in scope.tiles.values() if t.space == n.source]
        if tile is None:
            scope.unknown(n.name, n.span, held, f"tile in {n.source} memory")
        else:
            scope.report(
                "TL207",
                n.span,
                f"tile {n.name} lies in {tile.space} memory, this Copy reads {n.source}",
                f"write `from {tile.space}`",
            )
        return None
    if n.name not in scope.filled:
        scope.report(
            "TL204",
            n.span,
            f"tile {n.name} is read before anything fills it",
            f"compute {n.name} before this line",
        )
    return tile


def _check_store(n: s.Copy, scope: Scope) -> None:
    tile, tensor = _check_source(n, scope), scope.tensors.get(copy_tensor(n))
    if tensor is None:
        if n.to_name is None:
            scope.report(
                "TL101",
                n.span,
                f"{n.name} names no tensor to store to",
                "name it behind `to global`, as "
                f"`to global {next((x for x in scope.tensors if x not in scope.read), 'Out')}`",
            )
        else:
            scope.unknown(n.to_name, n.span, list(scope.tensors), "tensor")
        return
    if tensor.name not in scope.written:
        scope.written.append(tensor.name)
    found = tile_places(n, tensor, scope)
    if tile is None or found is None:
        return
    axes = _axes(found)
    if not same_axes(axes, tile.axes):
        code = "TL105" if {a.name for a in axes} != set(tile.axis_names) else "TL106"
        shape = f"({', '.join(f'{a.size} {a.name}' for a in axes)})"
        scope.report(
            code,
            n.span,
            f"this Copy stores {shape}, but {n.name} is {tile.describe()}",
            "store the tile with its own axes",
        )
    if n.source == "shared" and tile.dtype != tensor.dtype:
        scope.report(
            "TL104",
            n.span,
            f"{n.name} is {tile.dtype} in shared memory, {tensor.name} is {tensor.dtype}",
            "stage it in the tensor's type",
        )
    _check_place(n, found, scope)


def _check_place(n: s.Copy, found: list[Place], scope: Scope) -> None:
    """A result must go where it was computed: its axis begins where the coordinate says."""
    for p in found:
        origin = scope.origins.get(n.name, {}).get(p.axis)
        if p.kind == "axis" and origin is not None and not same_place(origin.start, p.start, scope):
            scope.report(
                "TL105",
                n.span,
                f"{n.name} was computed at {p.axis} = {expression(origin.start)}, "
                f"this Copy stores it at {p.axis} = {expression(p.start)}",
                "store it where it belongs",
            )


def same_place(a: s.Expr, b: s.Expr, scope: Scope) -> bool:
    """Tell whether two coordinates are equal, by trying values: they are polynomials of small degree."""
    from qimeng_attention.tl.evaluate import integer
    from qimeng_attention.tl.traverse import names_in

    free = sorted((names_in(a) | names_in(b)) - set(scope.fixed))
    if not set(free) <= {*scope.sizes, *scope.ints, *scope.tensors}:
        return True  # an unknown name has its own finding
    for trial in (3, 5, 11):
        values = {**scope.fixed, **{name: trial + 7 * n for n, name in enumerate(free)}}
        try:
            if integer(a, values) != integer(b, values):
                return False
        except (KeyError, ValueError, ZeroDivisionError):
            return True  # not comparable here; the interpreter sees it
    return True


def _check_on_chip(n: s.Copy, scope: Scope) -> None:
    source, name = _check_source(n, scope), copy_target(n)
    if source is None:
        return
    if n.coordinate:
        scope.report(
            "TL110",
            n.span,
            "a Copy between shared memory and registers takes whole tiles",
            "leave the coordinate out",
        )
    target = scope.tiles.get(name)
    if target is None or name == n.name:
        if n.target == "shared" or name == n.name:
            scope.report(
                "TL101",
                n.span,
                f"the tile to copy {n.name} to is not declared",
                f"write `to {n.target} Name`, declared by Allocate",
            )
            return
        role = "MMA_A" if BYTES[source.dtype] == 2 else "MMA_C"  # a 16-bit tile in registers is an operand
        scope.claim(name, n.span)
        target = scope.tiles[name] = TileType(name, n.target, source.dtype, source.axes, role)
    elif not same_axes(target.axes, source.axes) or target.space != n.target:
        scope.report(
            "TL106",
            n.span,
            f"{n.name} is {source.describe()}, but {name} is {target.describe()} in {target.space} memory",
            "give both the same shape",
        )
    elif n.source == "shared" and source.dtype != target.dtype:
        scope.report(
            "TL104",
            n.span,
            f"{n.name} is {source.dtype}, {name} is {target.dtype}",
            "only a Copy out of registers rounds",
        )
    if target.over is not None:
        scope.filled.discard(target.over)
    scope.filled.add(name)
    scope.origins[name] = dict(scope.origins.get(n.name, {}))


# ------------------------------------------------------------------ meaning


def resolve(n: s.Copy, tensor: TensorType, t: Strand) -> tuple[list[Array], list[Place], dict[str, int]]:
    """Give for each dimension the memory indices touched (-1 where none), and each axis's first logical index."""
    extents = [t.integer(d.size, n.span) for d in n.dims]
    t.machine.spend(sum(extents))
    found = places(n, extents, tensor.axis_names)
    shape = t.machine.tensors[tensor.name].shape
    indices, origin = [], {}
    starts = {p.axis: p for p in found if p.kind != "index"}
    for p, extent in zip(found, shape, strict=True):
        if p.along:
            axis = starts[p.along]
            first_row = t.integer(axis.start, n.span)
            rows = _gather(axis.axis, p.start, np.arange(first_row, first_row + axis.size), t)
            indices.append(np.where((rows >= 0) & (rows < extent), rows, -1))
            continue
        start = t.integer(p.start, n.span)
        logical = np.arange(start, start + (1 if p.kind == "index" else p.size))
        memory = logical
        if p.at is not None:
            first = np.asarray(t.environment().evaluate(p.at).data) if p.axis not in _free(p.at) else None
            memory = first + np.arange(p.size) if first is not None else _gather(p.axis, p.at, logical, t)
        if p.kind != "index":
            origin[p.axis] = start
        stop = extent if p.stop is None else t.integer(p.stop, n.span)
        valid = (memory >= 0) & (memory < extent) & ((logical < stop) if p.stop is not None else True)
        valid &= (logical >= 0) | (p.at is None)
        indices.append(np.where(valid, memory, -1))
    for d, p in enumerate(found):  # a row whose index lies outside of the tensor is nowhere
        for other, x in zip(found, indices, strict=True):
            if other.along and other.along == p.axis:
                indices[d] = np.where(x < 0, -1, indices[d])
    return indices, found, origin


def _free(e: s.Expr) -> set[str]:
    from qimeng_attention.tl.traverse import names_in

    return names_in(e)


def _gather(axis: str, e: s.Expr, logical: Array, t: Strand) -> Array:
    """Evaluate an expression at each index of an axis."""
    environment = t.environment()
    environment.indices = {axis: logical}
    return np.broadcast_to(np.asarray(environment.evaluate(e).data), logical.shape)


def _run(n: s.Copy, t: Strand) -> None:
    if n.source == "global":
        _load(n, t)
    elif n.target == "global":
        _store(n, t)
    elif n.source == "shared":
        slot = t.slot(n.name, n.slot, n.span)
        check_readable(slot, n.name, n.span, t)
        t.write_register(copy_target(n), slot.data, dict(slot.origin), n.span, dict(slot.ends))
        t.registers[copy_target(n)].zeros = slot.zeros
    else:
        _stage(n, t)


def _load(n: s.Copy, t: Strand) -> None:
    tensor = t.machine.checked.tensors[n.name]
    indices, found, origin = resolve(n, tensor, t)
    pairs = [(p, i) for p, i in zip(found, indices, strict=True) if p.kind == "axis"]
    past = {p.axis: rows_past(p, origin[p.axis] + np.flatnonzero(i < 0), n, t) for p, i in pairs}
    ends = {axis: frozenset(rows) for axis, rows in past.items() if rows}
    data = None
    if t.machine.numeric:
        axes = tuple(d for d, p in enumerate(found) if p.kind == "index")
        data = picked(t.machine.tensors[n.name], indices, found).squeeze(axis=axes).astype(np.float32)
    name = copy_target(n)
    if n.target == "register":
        t.write_register(name, data, origin, n.span, ends)
        return
    slot = t.slot(name, n.slot, n.span, "producer")
    begin_fill(name, slot, n, t)
    slot.data, slot.origin, slot.ends, slot.zeros = data, origin, ends, True
    _finish_fill(name, slot, n, t)


def begin_fill(name: str, slot: Slot, n: s.Copy, t: Strand) -> None:
    """Raise a fault if a stage may not be overwritten here."""
    if not t.machine.concurrent:
        return
    kind = t.machine.checked.tiles[name]
    for victim in [slot, *(t.block.shared[kind.over] if kind.over else [])]:
        if victim.state == "in flight":
            raise Fault(
                "TL405",
                n.span,
                f"{name} is refilled while its last copy may still be in flight",
                "wait for that copy first",
            )
        if victim.state == "landed":
            raise Fault(
                "TL405",
                n.span,
                f"{name} is refilled while other warps may still write its last content",
                "put `Barrier` between the last fill and this line",
            )
        if victim.reading:
            raise Fault(
                "TL404",
                n.span,
                f"{name} is refilled while an asynchronous GEMM or store still reads it",
                "put `Wait gemm pending ...`, or `Wait stores pending ...`, before it",
            )
        if victim.read and n.signals is None and kind.name not in t.block.consumers:
            raise Fault(
                "TL404",
                n.span,
                f"{name} is refilled while other warps may still read it",
                "put `Barrier` between the last read and this line",
            )
    ring = kind.view or name
    if n.signals is not None:
        use, stages = t.cursor.get((ring, "producer"), 0), len(t.block.shared[ring])
        if use >= stages and t.emptied.get(ring, 0) <= use:  # the first fill of each stage finds it fresh
            raise Fault(
                "TL404",
                n.span,
                f"{name} is refilled without having waited for an empty slot",
                f"put `Wait {ring}.empty` before this line",
            )
    if ring in t.block.consumers:
        needed = slot.fills * t.block.consumers[ring]
        if slot.releases < needed:
            raise Fault(
                "TL404",
                n.span,
                f"{name} is refilled before all its readers released it",
                f"put `Wait {ring}.empty` before this line",
            )
    for other in t.machine.checked.tiles.values():
        if other.over == name or kind.over == other.name:
            for victim in t.block.shared.get(other.name, []):
                victim.state, victim.data = ("empty", None) if victim is not slot else (victim.state, victim.data)


def _finish_fill(name: str, slot: Slot, n: s.Copy, t: Strand) -> None:
    slot.read = False
    by_engine = n.signals is not None or not t.machine.concurrent
    slot.writer, slot.fenced = None if by_engine else t, by_engine
    if not t.machine.concurrent:
        slot.state = "ready"
    elif not n.asynchronous:
        slot.state = "landed"
    elif n.signals is None:
        slot.state, slot.group = "in flight", t.block.open_group
    else:
        ring = n.signals.split(".")[0]
        slot.state = "in flight"
        t.cursor[(ring, "producer")] = t.cursor.get((ring, "producer"), 0) + 1
        t.block.arrivals.append(lambda: _arrive(t.block, slot))


def _arrive(block: Block, slot: Slot) -> None:
    slot.state = "ready"
    slot.fills += 1


def _stage(n: s.Copy, t: Strand) -> None:
    """Write a register tile to shared memory, rounding to the staging tile's type."""
    register, name = t.read_register(n.name, n.span), copy_target(n)
    kind = t.machine.checked.tiles[name]
    slot = t.slot(name, n.slot, n.span, "producer")
    begin_fill(name, slot, n, t)
    slot.data = None if register.data is None else round_to(register.data, kind.dtype)
    slot.origin, slot.ends, slot.read = dict(register.origin), dict(register.ends), False
    slot.zeros = register.zeros
    if t.machine.concurrent:
        slot.state, slot.writer, slot.fenced = "landed", t, False
    else:
        slot.state = "ready"


def _issue_store(n: s.Copy, slot: Slot, t: Strand) -> None:
    """An asynchronous store reads its stage until it is waited for."""
    if not slot.fenced:
        raise Fault(
            "TL412",
            n.span,
            f"the copy engine may not see what the threads wrote to {n.name}",
            "put `Fence async` and `Barrier` between the write and this line",
        )
    slot.reading += 1
    t.stores.append((n.name, slot, n.span))


def _store(n: s.Copy, t: Strand) -> None:
    tensor = t.machine.checked.tensors[copy_tensor(n)]
    if n.source == "shared":
        slot = t.slot(n.name, n.slot, n.span)
        check_readable(slot, n.name, n.span, t)
        data = slot.data
        if n.asynchronous:
            _issue_store(n, slot, t)
    else:
        data = t.read_register(n.name, n.span).data
    indices, _, _ = resolve(n, tensor, t)
    where = np.ix_(*[i[i >= 0] for i in indices])
    counts = t.machine.written[tensor.name]
    if not n.accumulate and counts.shape == t.machine.tensors[tensor.name].shape:  # else too many to follow
        if np.any(counts[where] > 0):
            raise Fault(
                "TL304",
                n.span,
                f"{tensor.name} is written twice at the same place",
                "check the coordinate and the Grid: each block stores its own tile",
            )
        counts[where] += 1
    if data is None:
        return
    shaped = data.reshape([len(i) for i in indices])
    kept = round_to(shaped[np.ix_(*[i >= 0 for i in indices])], tensor.dtype)
    out = t.machine.tensors[tensor.name]
    out[where] = out[where] + kept if n.accumulate else kept


RULES = {
    s.Copy: Rule(
        "Copy",
        "Copy",
        "Copy K (BN, D) in coordinate [batch, k = i * BN, head // (Hq // Hk)] from global to shared",
        "Moves a tile between memories. Past the tensor's end it reads 0 and writes nothing; out of "
        "registers it "
        "rounds "
        "to the "
        "type it meets.",
        _check,
        _run,
        "sketch",
    ),
}
