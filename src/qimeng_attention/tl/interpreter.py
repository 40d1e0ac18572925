"""Runs a checked program on the CPU, tile by tile, with the declared types' rounding: the meaning of TL.

Both levels run: code in order, scheduled code with its roles and barriers. Not here: judging the result (judge/).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

import numpy as np

from qimeng_attention.errors import DiagnosticError, Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.machine import Fault, Machine
from qimeng_attention.tl.numerics import INTEGER_TYPES, Array, round_to
from qimeng_attention.tl.types import Checked


def interpret(checked: Checked, sizes: Mapping[str, int], inputs: Mapping[str, Array], scalars: Mapping[str, float] | None = None,
              *, seed: int = 0, source: str = "", file: str = "<tl>") -> dict[str, Array]:  # fmt: skip
    """Run a program on one set of inputs.

    Args:
        checked: the program.
        sizes: a value for each run-time size.
        inputs: a float32 (or integer) array for each input tensor, in its declared shape; values are rounded to its type.
        scalars: a value for each Scalar.
        seed: of the order in which roles interleave and copies complete.

    Returns:
        The outputs by name, float32 arrays that hold values of their types.

    Raises:
        DiagnosticError: a fault found while running (TL3xx, TL4xx), or an output element never written (TL301).
    """
    machine = make_machine(checked, sizes, inputs, scalars or {}, seed=seed)
    try:
        for index in grid_points(checked, machine.sizes):
            machine.run_block(index)
        check_written(machine)
    except Fault as fault:
        raise DiagnosticError([fault.diagnostic], source=source, file=file) from None
    return {name: machine.tensors[name] for name in checked.outputs}


def make_machine(checked: Checked, sizes: Mapping[str, int], inputs: Mapping[str, Array], scalars: Mapping[str, float],
                 *, seed: int = 0, numeric: bool = True) -> Machine:  # fmt: skip
    """Prepare a run: inputs rounded, outputs poisoned with NaN, writes counted."""
    ints = {name: int(sizes[name]) for name in checked.sizes}
    tensors: dict[str, Array] = {}
    for name, tensor in checked.tensors.items():
        shape = tuple(integer(d, {**checked.fixed, **ints}) for d in tensor.dims)
        if name in checked.outputs:
            tensors[name] = np.full(shape, np.nan, np.float32)
        elif name in inputs:
            if inputs[name].shape != shape:
                raise ValueError(f"{name} has the shape {inputs[name].shape}, the program says {shape}")
            tensors[name] = round_to(inputs[name], tensor.dtype)
        else:
            tensors[name] = np.zeros(shape, np.int64 if tensor.dtype in INTEGER_TYPES else np.float32)
    written = {name: np.zeros(tensors[name].shape, np.int32) for name in checked.outputs}
    return Machine(checked, ints, dict(scalars), tensors, seed, numeric, written)


def grid_points(
    checked: Checked, sizes: Mapping[str, int], at_most: int | None = None
) -> Iterable[dict[str, int]]:
    """Give the grid's points; `at_most` keeps the first and last few of each index (for checks, not for results)."""
    ints = {**checked.fixed, **sizes}
    ranges = []
    for d in checked.grid.dims:
        values = list(range(integer(d.start, ints), integer(d.stop, ints)))
        if at_most is not None and len(values) > at_most:
            values = values[: at_most - 1] + values[-1:]
        ranges.append(values)
    if checked.grid.persistent:
        ranges = [r[:1] for r in ranges]
        points = [
            dict(zip([d.name for d in checked.grid.dims], p, strict=True)) for p in itertools.product(*ranges)
        ]
        return points
    return (
        dict(zip([d.name for d in checked.grid.dims], p, strict=True)) for p in itertools.product(*ranges)
    )


def check_written(machine: Machine) -> None:
    """Raise TL301 for an output with an element that no block wrote."""
    for name, counts in machine.written.items():
        if np.any(counts == 0):
            where = tuple(int(i) for i in np.argwhere(counts == 0)[0])
            span = next(
                (n.span for n in machine.checked.kernel.body if isinstance(n, s.Copy) and n.to_name == name),
                Span(),
            )
            raise Fault(
                "TL301",
                span,
                f"{name}{list(where)} is never written",
                "let the Grid and the coordinates cover the whole output",
            )
