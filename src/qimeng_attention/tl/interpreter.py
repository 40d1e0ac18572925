"""Runs a checked program on the CPU, tile by tile, with the declared types' rounding: the meaning of TL.

Both levels run: code in order, scheduled code with its roles and barriers. Not here: judging the result (judge/).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import copy_tensor
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.machine import Fault, Machine
from qimeng_attention.tl.numerics import INTEGER_TYPES, Array, empty_of, round_to
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import Checked


def interpret(
    checked: Checked,
    sizes: Mapping[str, int],
    inputs: Mapping[str, Array],
    scalars: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
    source: str = "",
    file: str = "<tl>",
    partial: bool = False,
) -> dict[str, Array]:
    """Run a program on one set of inputs.

    Args:
        checked: the program.
        sizes: a value for each run-time size.
        inputs: a float32 (or integer) array for each input tensor, in its declared shape; values are rounded to its
        type.
        scalars: a value for each Scalar.
        seed: of the order in which roles interleave and copies complete.
        source: the program's text, for diagnostics.
        file: its name.
        partial: the inputs decide which elements are written, and the others hold NaN; else each must be.

    Returns:
        The outputs by name, float32 arrays that hold values of their types.

    Raises:
        DiagnosticError: a fault found while running (TL3xx, TL4xx), or an output element never written (TL301).
    """
    machine = make_machine(checked, sizes, inputs, scalars or {}, seed=seed)
    try:
        for index in grid_points(checked, machine.sizes):
            machine.run_block(index)
        if not partial:
            check_written(machine)
    except Fault as fault:
        raise DiagnosticError([fault.diagnostic], source=source, file=file) from None
    return {name: machine.tensors[name] for name in checked.outputs}


def interpret_program(
    kernels: Sequence[Checked],
    sizes: Mapping[str, int],
    inputs: Mapping[str, Array],
    scalars: Mapping[str, float] | None = None,
    *,
    seed: int = 0,
) -> dict[str, Array]:
    """Run the kernels of a file in order; a tensor that one writes is an input, by its name, of those behind it.

    Args as of `interpret`; sizes and scalars are those of all kernels together.

    Returns:
        The outputs of all kernels by name.
    """
    outputs: dict[str, Array] = {}
    for checked in kernels:
        own = {name: value for name, value in (scalars or {}).items() if name in checked.scalars}
        outputs |= interpret(checked, sizes, {**inputs, **outputs}, own, seed=seed)
    return outputs


def make_machine(
    checked: Checked,
    sizes: Mapping[str, int],
    inputs: Mapping[str, Array],
    scalars: Mapping[str, float],
    *,
    seed: int = 0,
    numeric: bool = True,
) -> Machine:
    """Prepare a run: inputs rounded, outputs poisoned with NaN, writes counted; without numbers only given inputs are.

    An output that is only accumulated into begins at 0, as the launcher leaves it.
    """
    sums = accumulated(checked)
    ints = {name: int(sizes[name]) for name in checked.sizes}
    tensors: dict[str, Array] = {}
    for name, tensor in checked.tensors.items():
        shape = tuple(max(0, integer(d, {**checked.fixed, **ints})) for d in tensor.dims)
        if not numeric and name not in inputs:
            tensors[name] = np.broadcast_to(empty_of(tensor.dtype, ()), shape)  # takes no memory
        elif name in checked.outputs:
            tensors[name] = np.full(shape, 0.0 if name in sums else np.nan, np.float32)
        elif name in inputs:
            if inputs[name].shape != shape:
                raise ValueError(f"{name} has the shape {inputs[name].shape}, the program says {shape}")
            tensors[name] = round_to(inputs[name], tensor.dtype)
        else:
            tensors[name] = empty_of(tensor.dtype, shape)
    written = {name: np.zeros(tensors[name].shape, np.int32) for name in checked.outputs} if numeric else {}
    numbers = {n: int(v) for n, v in scalars.items() if checked.scalars[n].dtype in INTEGER_TYPES}
    return Machine(checked, ints | numbers, dict(scalars), tensors, seed, numeric, written)


def accumulated(checked: Checked) -> set[str]:
    """Give the outputs that every store adds to."""
    stores = [n for n in statements(checked.kernel.body) if isinstance(n, s.Copy) and n.target == "global"]
    return set(checked.outputs) - {copy_tensor(n) for n in stores if not n.accumulate}


def grid_ranges(checked: Checked, sizes: Mapping[str, int]) -> list[range]:
    """Give the values of each index of the grid."""
    ints = {**checked.fixed, **sizes}
    return [range(integer(d.start, ints), integer(d.stop, ints)) for d in checked.grid.dims]


def grid_points(checked: Checked, sizes: Mapping[str, int], at_most: int | None = None) -> Iterator[dict[str, int]]:
    """Give the grid's points; `at_most` keeps the first and last few of each index (for checks, not for results)."""
    ranges: list[Sequence[int]] = []
    for values in grid_ranges(checked, sizes):
        if checked.grid.persistent:
            ranges.append(values[:1])
        elif at_most is not None and len(values) > at_most:
            ranges.append([*values[: at_most - 1], values[-1]])
        else:
            ranges.append(values)
    names = [d.name for d in checked.grid.dims]
    return (dict(zip(names, p, strict=True)) for p in itertools.product(*ranges))


def check_written(machine: Machine) -> None:
    """Raise TL301 for an output with an element that no block wrote."""
    sums = accumulated(machine.checked)
    for name, counts in machine.written.items():
        if name in sums:
            continue
        if np.any(counts == 0):
            where = ", ".join(str(int(i)) for i in np.argwhere(counts == 0)[0])
            stores = [
                n
                for n in statements(machine.checked.kernel.body)
                if isinstance(n, s.Copy) and n.target == "global" and copy_tensor(n) == name
            ]
            raise Fault(
                "TL301",
                stores[-1].span,
                f"{name}[{where}] is never written",
                "let the Grid and the coordinates cover the whole output",
            )
