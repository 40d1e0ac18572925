"""What a launcher must know of a kernel: its grid and its arguments, as data without any TL in it.

Arguments in order: for each tensor its pointer and the strides of all dimensions but the last (int64), then the
run-time sizes (int32), then the scalars (float32), then the tensor maps (128 bytes each), then the address of the tile
counter where the grid has one. Expressions are JSON: an integer, a size's name, or [operator, arguments...].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qimeng_attention.errors import DiagnosticError
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.coordinates import copy_tensor
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.numerics import BYTES
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import Checked


@dataclass(frozen=True)
class TensorMap:
    """A tensor as the copy engine sees it: the box of elements that one instruction moves, dimension by dimension.

    With a group the engine sees one dimension as two, groups and the rows of each: a larger box ends with its group. A
    ragged dimension is two as well, so that each copy says itself where its box ends (runtime/tensor_maps.py).
    """

    tensor: str
    box: tuple[int, ...]
    dimension: int = 0  # the one that is two
    group: int = 0  # rows of a group, 0 where none is
    ragged: bool = False  # each copy says how many rows there are

    @property
    def name(self) -> str:
        """Name the kernel's argument."""
        group = f"_by_{self.group}" if self.group else "_ragged" if self.ragged else ""
        return f"m{self.tensor}_{'x'.join(map(str, self.box))}{group}"


_FUNCTIONS = ("min", "max", "clamp", "ceildiv")


def launch_facts(checked: Checked, maps: Sequence[TensorMap] = ()) -> dict[str, Any]:
    """Give grid, tensors, sizes and scalars of a kernel, as its manifest holds them."""
    copies = [n for n in statements(checked.kernel.body) if isinstance(n, s.Copy)]
    copied = {copy_tensor(n) for n in copies if "global" in (n.source, n.target)}
    tensors = [
        {
            "name": t.name,
            "dtype": t.dtype,
            "dims": [json_expression(d, checked.fixed) for d in t.dims],
            "role": "output" if t.name in checked.outputs else "input",
            "align": 0 if t.name in copied else BYTES[t.dtype],  # bytes; elements are read one by one, tiles by 16
        }
        for t in used_tensors(checked)
    ]
    scalars = [
        {
            "name": n,
            "dtype": sc.dtype,
            "op": sc.op,
            "bound": None if sc.bound is None else _number(sc.bound, checked),
        }
        for n, sc in checked.scalars.items()
    ]
    grid = [
        {
            "name": d.name,
            "start": json_expression(d.start, checked.fixed),
            "stop": json_expression(d.stop, checked.fixed),
        }
        for d in checked.grid.dims
    ]
    boxes = [
        {"tensor": m.tensor, "box": list(m.box), "dimension": m.dimension, "group": m.group}
        | ({"ragged": True} if m.ragged else {})
        for m in maps
    ]
    return {
        "grid": grid,
        "persistent": checked.grid.persistent,
        "counter": checked.grid.counter,
        "tensors": tensors,
        "sizes": list(checked.sizes),
        "scalars": scalars,
        "maps": boxes,
        "chosen": {name: json_expression(e, checked.fixed) for name, e in checked.chosen.items()},
    }


def used_tensors(checked: Checked) -> list[Any]:
    """Give the tensors the kernel touches, in order of declaration."""
    return [t for t in checked.tensors.values() if t.name in checked.inputs or t.name in checked.outputs]


def json_expression(e: s.Expr, fixed: dict[str, int]) -> Any:
    """Write an integer expression as JSON, fixed sizes put in."""
    try:
        return integer(e, fixed)
    except (KeyError, ValueError, ZeroDivisionError):
        pass
    match e:
        case s.Name(id):
            return id
        case s.Binary(op, a, b):
            return [op, json_expression(a, fixed), json_expression(b, fixed)]
        case s.Unary("-", x):
            return ["-", 0, json_expression(x, fixed)]
        case s.Call(function, args) if function in _FUNCTIONS:
            return [function, *[json_expression(a, fixed) for a in args]]
    raise DiagnosticError([]) from None


def _number(e: s.Expr, checked: Checked) -> float:
    from qimeng_attention.tl.evaluate import Environment

    return float(Environment(checked.fixed).evaluate(e).data)
