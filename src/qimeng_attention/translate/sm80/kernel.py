"""The frame of a kernel: its arguments, the block's indices, its tiles; and the declarations inside it."""

from __future__ import annotations

from collections.abc import Sequence

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.layout import PIECES
from qimeng_attention.tl.printer import head
from qimeng_attention.tl.traverse import statements
from qimeng_attention.tl.types import TensorType
from qimeng_attention.translate import names
from qimeng_attention.translate.abi import used_tensors
from qimeng_attention.translate.expressions import Cpp
from qimeng_attention.translate.sm80.context import (
    ALIGNMENT,
    FUNCTIONS,
    ROWS_A_FRAGMENT,
    Lowering,
    Lowerings,
    Refused,
)
from qimeng_attention.translate.sm80.copy import declare_views
from qimeng_attention.translate.sm80.gather import HEADER as GATHER
from qimeng_attention.translate.sm80.gather import gathers

_BLOCK_INDEX = ("x", "y", "z")


def emit(low: Lowering, digest: str) -> None:
    """Emit the whole kernel."""
    checked, out = low.checked, low.out
    title(low, digest, low.header)
    blocks = f", {checked.blocks_per_sm}" if checked.blocks_per_sm else ""
    out.line(f'extern "C" __global__ void __launch_bounds__({low.threads}{blocks}) {checked.kernel.name}(')
    arguments(low)
    with out.block(")"):
        fixed_sizes(low)
        block_indices(low)
        shared_tiles(low)
        low.body(checked.kernel.body, declare_views)


def title(low: Lowering, digest: str, header: str) -> None:
    """Emit what stands above the kernel: where it comes from, what its launch needs, the author's comments."""
    checked, out = low.checked, low.out
    out.line(f"// {checked.kernel.name}: made from TL {digest} for {low.target.name} ({low.target.arch}).")
    out.line(f"// launch: {low.threads} threads, {low.shared_bytes} bytes of shared memory, for {low.target.name}")
    for comment in checked.kernel.above:
        out.line(f"// {comment}")
    out.line(f'#include "{header}"')
    if any(gathers(n, low) for n in statements(checked.kernel.body)):
        out.line(f'#include "{GATHER}"')
    out.line()


def arguments(low: Lowering, more: Sequence[str] = ()) -> None:
    """Emit the arguments in the order of translate/abi.py, and those that the generation adds."""
    lines = [_pointer(t, low) for t in used_tensors(low.checked)]
    sizes = [f"int const {names.variable(n)}" for n in low.checked.sizes]
    scalars = [f"float const {names.variable(n)}" for n in low.checked.scalars]
    groups = [*lines, *([", ".join(sizes)] if sizes else []), *([", ".join(scalars)] if scalars else []), *more]
    for number, group in enumerate(groups):
        low.out.line("    " + group + ("," if number < len(groups) - 1 else ""))


def _pointer(tensor: TensorType, low: Lowering) -> str:
    constant = " const" if tensor.name not in low.checked.outputs else ""
    if tensor.dtype not in names.ELEMENTS:
        raise Refused(
            low.checked.grid,
            f"{tensor.name} is {tensor.dtype}, of which no lowering loads or stores tiles yet",
            f"take one of {', '.join(names.ELEMENTS)}",
        )
    element = names.ELEMENTS[tensor.dtype]
    strides = "".join(f", int64_t const {names.stride(tensor.name, d)}" for d in range(len(tensor.dims) - 1))
    return f"{element}{constant}* __restrict__ const {names.tensor(tensor.name)}{strides}"


def fixed_sizes(low: Lowering) -> None:
    """Emit the sizes that are compiled in."""
    out = low.out
    if low.checked.fixed:
        out.line("constexpr int " + ", ".join(f"{names.variable(k)} = {v}" for k, v in low.checked.fixed.items()) + ";")
    out.line(f"constexpr int kThreads = {low.threads};")
    out.line()


def block_indices(low: Lowering) -> None:
    """Emit the block's indices; one that counts down begins with the last block."""
    grid, out = low.checked.grid, low.out
    if grid.persistent:
        raise Refused(grid, "this generation's lowering has no persistent grid", "remove `persistent`")
    out.mark(grid.span.line, head(grid))
    for d, axis in zip(grid.dims, _BLOCK_INDEX, strict=False):
        index = f"int(gridDim.{axis} - 1 - blockIdx.{axis})" if d.down else f"int(blockIdx.{axis})"
        start = "" if d.start == s.Num(0) else f"{low.integer(d.start, grid)} + "
        out.line(f"int const {names.variable(d.name)} = {start}{index};")


def shared_tiles(low: Lowering) -> None:
    """Emit the tiles in shared memory."""
    out = low.out
    tiles = [t for t in low.checked.tiles.values() if t.space == "shared"]
    if not tiles:
        return
    out.line()
    out.line(f"extern __shared__ __align__({ALIGNMENT}) unsigned char shared_memory[];  // {low.shared_bytes} bytes")
    allocations = {n.name: n for n in low.checked.kernel.body if isinstance(n, s.Allocate) and n.space == "shared"}
    for tile in tiles:
        n: s.Statement = allocations.get(tile.name, low.checked.grid)
        if tile.view is not None:
            raise Refused(
                n,
                f"{tile.name} is a view, which this generation's lowering does not read",
                "copy it as a tile of its own",
            )
        if len(tile.axes) == 1:
            raise Refused(
                n,
                f"the vector {tile.name} {tile.describe()} lies in shared memory, where only tiles of rows do",
                f"copy it from global to a register tile: `Allocate R in register ({tile.axes[0].size} "
                f"{tile.axes[0].name}) {tile.dtype}`, `Copy ... from global to register R`",
            )
        if len(tile.axes) != 2 or tile.swizzle not in PIECES or tile.axes[-1].size % ROWS_A_FRAGMENT:
            raise Refused(
                n,
                f"the tile {tile.name} {tile.describe()} needs rows of whole blocks of {ROWS_A_FRAGMENT} elements, "
                f"swizzled over {' or '.join(map(str, PIECES))} bytes",
                "take a wider tile: what lies past the tensor's end reads as 0",
            )
        if isinstance(n, s.Allocate):
            out.mark(n.span.line, head(n))
        element = names.ELEMENTS[tile.dtype]
        out.line(
            f"{low.shared_type(tile)} const "
            f"{names.shared(tile.name)}{{reinterpret_cast<{element}*>(shared_memory + {low.offsets[tile.name]})}};"
        )
    out.line()


# ------------------------------------------------------------------ statements


def _allocate(n: s.Allocate, low: Lowering) -> None:
    """Declare a register tile and give it its initial value."""
    if n.space != "register":
        return
    low.out.mark(n.span.line, head(n))
    low.out.line(f"{low.register_type(n.name, n)} {names.register(n.name)};")
    low.declared.add(n.name)
    if n.init is not None:
        cpp = Cpp(low.checked, FUNCTIONS)
        text = low.expression(cpp, n.init, n)
        low.out.line(f"{names.register(n.name)}.fill({cpp.floating(n.init) if cpp.is_int(n.init) else text});")


def _let(n: s.Let, low: Lowering) -> None:
    low.out.line(f"int const {names.variable(n.name)} = {low.integer(n.value, n)};")
    low.lets.add(n.name)


def _find(n: s.Find, low: Lowering) -> None:
    low.out.line(find_line(n, low, "find"))
    low.lets.add(n.name)


def find_line(n: s.Find, low: Lowering, function: str) -> str:
    """Write a search by a function of the prelude."""
    name, ends = names.variable(n.name), [low.integer(e, n) for e in (n.range.start, n.range.stop)]
    holds = f"[&](int {name}) {{ return {low.integer(n.condition, n)}; }}"
    return f"int const {name} = tl::{function}({', '.join(ends)}, {holds});"


def _nothing(n: s.Statement, low: Lowering) -> None:
    """Declarations are in the kernel's frame."""


LOWERINGS: Lowerings = {
    "Size": _nothing,
    "Choose": _nothing,
    "Tile": _nothing,
    "Scalar": _nothing,
    "Grid": _nothing,
    "Warps": _nothing,
    "Allocate": _allocate,
    "Let": _let,
    "Find": _find,
}
