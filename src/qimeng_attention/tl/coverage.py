"""A checked program run on small sizes, without numbers: what symbolic arithmetic would have to prove, tried.

Finds loops that miss or repeat tiles, outputs uncovered or written twice, tiles read where nothing filled them, and the
machine's faults of concurrency. The work is bounded: a run that takes too long ends with a warning.

Not here: which sizes are tried (small_model.py), and what counts as a fault of a statement (statements/).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

import numpy as np

from qimeng_attention.errors import Diagnostic, Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import copy_tensor
from qimeng_attention.tl.evaluate import Environment, Value, integer
from qimeng_attention.tl.hidden import both, hiding
from qimeng_attention.tl.interpreter import check_written, grid_points, grid_ranges, make_machine
from qimeng_attention.tl.machine import Fault, Machine, Unfinished
from qimeng_attention.tl.numerics import INTEGER_TYPES, Array
from qimeng_attention.tl.small_model import rising, searches, small_sizes
from qimeng_attention.tl.traverse import names_in, statements
from qimeng_attention.tl.types import Checked

MODEL_BLOCKS = 3  # points of each grid index tried on small sizes
MODEL_STEPS = 60_000  # statements run for one text: about a second
MOST_ELEMENTS = 1 << 23  # of an output, an axis or a mask's rows and columns that are followed one by one
LONG = 1 << 10  # a length that a tensor gives: several tiles
MOST_FINDINGS = 3  # kinds of fault of one kernel


@dataclass
class Allowance:
    """The steps left for running the kernels of one text."""

    steps: int = MODEL_STEPS


def run_small(checked: Checked, allowance: Allowance | None = None) -> list[Diagnostic]:
    """Run a program on small sizes without numbers and give the first fault of each kind."""
    allowance = allowance or Allowance()
    found: dict[str, Diagnostic] = {}
    searched = searches(checked)
    for sizes, lengths in product(small_sizes(checked), (0, LONG) if _lengths(checked) else (0,)):
        try:
            _run_once(checked, sizes, allowance, lengths, searched)
        except Fault as fault:
            message = f"{fault.diagnostic.message}{_shown(sizes)}"
            span = fault.diagnostic.span if fault.diagnostic.span.line else checked.kernel.span
            found.setdefault(fault.diagnostic.code, replace(fault.diagnostic, message=message, span=span))
        except Unfinished:
            found.setdefault("TL413", _cut_short(checked.kernel.span))
            break
        except (ValueError, ZeroDivisionError, OverflowError) as error:
            message = f"a size or a bound of the grid cannot be computed{_shown(sizes)}: {error}"
            hint = "guard the divisor, as with max(x, 1), and check the declarations"
            found.setdefault("TL103", Diagnostic("TL103", message, hint, checked.kernel.span))
        if len(found) > MOST_FINDINGS:
            break
    return list(found.values())


def _cut_short(span: Span) -> Diagnostic:
    return Diagnostic(
        "TL413",
        f"the run on small sizes was cut short after {MODEL_STEPS:,} statements: what it found is not all there may be",
        "give large sizes at run time instead of fixing them",
        span,
        "warning",
    )


def _shown(sizes: dict[str, int]) -> str:
    return f" (with {', '.join(f'{k} = {v}' for k, v in sizes.items())})" if sizes else ""


def _lengths(checked: Checked) -> set[str]:
    """Give the integer tensors that say where tiles end: what a Let reads and a Copy's coordinate ends with.

    With 0 in them no loop behind them would run; what any other tensor holds is left at 0, which no program excludes.
    """
    body = list(statements(checked.kernel.body))
    ends = names_in(tuple(c.stop for n in body if isinstance(n, s.Copy) for c in n.coordinate if c.stop is not None))
    read = names_in(tuple(n.value for n in body if isinstance(n, s.Let) and n.name in ends))
    return {n for n in checked.inputs if n in read and checked.tensors[n].dtype in INTEGER_TYPES}


def _run_once(
    checked: Checked, sizes: dict[str, int], allowance: Allowance, lengths: int = 0, searched: Sequence[s.Find] = ()
) -> None:
    given = rising(checked, sizes, searched)
    machine = make_machine(checked, sizes, given, dict.fromkeys(checked.scalars, 1.0), numeric=False)
    for name in _lengths(checked) - given.keys() if lengths else ():
        tensor = machine.tensors[name]
        machine.tensors[name] = np.broadcast_to(np.asarray(lengths, tensor.dtype), tensor.shape)
        machine.named[name] = (machine.tensors[name], checked.tensors[name].dtype)
    machine.steps_left = allowance.steps
    machine.written = {n: _counts(machine.tensors[n]) for n in checked.outputs}
    try:
        tried = 0
        for index in grid_points(checked, machine.sizes, MODEL_BLOCKS):
            machine.spend()
            machine.run_block(index)
            _check_coverage(machine, index)
            tried += 1
        if _reads_for_control(checked):
            return  # which rows are stored is known only with the tensors' values
        if checked.grid.persistent or tried == prod(len(r) for r in grid_ranges(checked, machine.sizes)):
            check_written(machine)
    finally:
        allowance.steps = machine.steps_left


def _reads_for_control(checked: Checked) -> bool:
    """Tell whether elements of tensors decide where results go."""
    loaded = set(checked.tensors)
    for n in statements(checked.kernel.body):
        if isinstance(n, s.Let | s.Find) and names_in(n) & loaded:
            loaded.add(n.name)
        elif (isinstance(n, s.If) and names_in(n.condition) & loaded) or (
            isinstance(n, s.Copy) and n.target == "global" and names_in(n.coordinate) & loaded
        ):
            return True
    return False


def _counts(tensor: Array) -> Array:
    """Count the writes of each element, or of none where there are too many to follow."""
    return np.zeros(tensor.shape if tensor.size <= MOST_ELEMENTS else (0,) * tensor.ndim, np.int32)


# ------------------------------------------------------------------ sums over an axis


def _check_coverage(machine: Machine, index: dict[str, int]) -> None:
    """No accumulating GEMM may sum over a stretch twice, nor miss one that a mask lets anyone see."""
    checked = machine.checked
    for axis, extent in _summed_axes(machine):
        instances = {c.instance for c in machine.contracted} or {0}
        by_instance = {i: np.zeros(extent, bool) for i in instances}
        for span, instance, name, start, size in machine.contracted:
            if name != axis:
                continue
            part = by_instance[instance][max(0, start) : max(0, start + size)]
            if part.any():
                raise Fault(
                    "TL303",
                    span,
                    f"{axis} = {start} : {start + size} is summed over again in the "
                    f"block at {_point(index)}, expected once",
                    "let the loop and the coordinate visit each tile once",
                )
            part[:] = True
        covered = np.logical_and.reduce(list(by_instance.values()))
        missed = np.flatnonzero(_needed(machine, axis, extent, index) & ~covered)
        if len(missed):
            raise Fault(
                "TL302",
                _place_of_sum(checked),
                f"{axis} = {missed[0]} is never summed over, but no mask hides it from the block at {_point(index)}",
                f"mask what no row may see (`Compute Mask ... where ...`), or let the loop visit {axis} = {missed[0]}",
            )


def _point(index: dict[str, int]) -> str:
    return ", ".join(f"{k} = {v}" for k, v in index.items())


def _place_of_sum(checked: Checked) -> Span:
    """Give the last loop that sums, or the GEMM where no loop does."""
    body = list(statements(checked.kernel.body))
    loops = [n for n in body if isinstance(n, s.For) and any(_sums(x) for x in statements(n.body))]
    return next((n.span for n in [*reversed(loops), *body] if n in loops or _sums(n)), checked.kernel.span)


def _sums(n: s.Statement) -> bool:
    return isinstance(n, s.Gemm) and n.accumulate


def _summed_axes(machine: Machine) -> Iterator[tuple[str, int]]:
    """Give the axes whose sum can be followed, and how far each reaches.

    That is one accumulation (split loops repeat its statement, they add none), over a tensor read in place.
    """
    checked = machine.checked
    body = list(statements(checked.kernel.body))
    sums = [n for n in body if isinstance(n, s.Gemm) and n.accumulate]
    if len({n.out for n in sums}) != 1 or checked.grid.persistent:
        return
    axes = {checked.tiles[n.b.name].axis_names[1 if n.b.transposed else 0] for n in sums}
    loads = [n for n in body if isinstance(n, s.Copy) and n.source == "global"]
    for axis in sorted(axes):
        entries = [
            (c, d)
            for n in loads
            for c, d in zip(n.coordinate, checked.tensors[n.name].dims, strict=False)
            if c.axis == axis
        ]
        gathered = any(c.at is not None or names_in(c.start) & set(checked.tensors) for c, _ in entries)
        whole = [d for c, d in entries if c.stop is None]
        if gathered or not whole:
            continue
        extent = integer(whole[0], {**checked.fixed, **machine.sizes})
        if 0 <= extent <= MOST_ELEMENTS:
            machine.spend(extent)
            yield axis, extent


def _needed(machine: Machine, axis: str, extent: int, index: dict[str, int]) -> Array:
    """Tell for each index of an axis whether some row of the block may see it."""
    checked = machine.checked
    ints = {**checked.fixed, **machine.sizes, **index}
    rows = _row_ranges(machine, ints)
    undecided = np.zeros(extent, bool)
    if not rows or any(len(r) == 0 for r in rows.values()) or prod(map(len, rows.values())) * extent > MOST_ELEMENTS:
        return undecided
    groups = hiding(checked.kernel.body, axis)
    environment = Environment(ints, indices={**rows, axis: np.arange(extent)})
    visible: Array = np.ones(extent, bool) if not groups else np.zeros(extent, bool)
    for group in groups:
        machine.spend(extent * len(group))
        alone = [(h, _value(h.condition, environment)) for h in group]
        if any(h.written for h, value in alone if value is None):
            return undecided  # it reads a tensor or a loop variable: not decided here
        known = [(h, value) for h, value in alone if value is not None]
        value = known[0][1] if len(known) == 1 else environment.evaluate(both([h for h, _ in known]))
        data = np.asarray(value.data)
        if axis in value.axes:
            data = np.asarray(data.any(axis=tuple(i for i, a in enumerate(value.axes) if a != axis)))
        visible[:] |= np.broadcast_to(data, (extent,))
    return visible


def _value(condition: s.Expr, environment: Environment) -> Value | None:
    try:
        return environment.evaluate(condition)
    except (KeyError, ZeroDivisionError):
        return None


def _row_ranges(machine: Machine, ints: dict[str, int]) -> dict[str, Array]:
    """Give the valid row indices of the block, by axis, from where its outputs go."""
    ranges: dict[str, Array] = {}
    for n in statements(machine.checked.kernel.body):
        if not isinstance(n, s.Copy) or n.target != "global":
            continue
        extents = iter(n.dims)
        for c, dim in zip(n.coordinate, machine.checked.tensors[copy_tensor(n)].dims, strict=False):
            if c.axis is None:
                continue
            size = next(extents, None)
            try:
                start, end = integer(c.start, ints), integer(dim, ints)
                width = integer(size.size, ints) if size else 1
            except (KeyError, ValueError, ZeroDivisionError):
                return {}
            ranges[c.axis] = np.arange(start, min(start + width, end))
    return ranges
