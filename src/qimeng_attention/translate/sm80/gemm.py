"""Matrix products through mma.m16n8k16; operands in shared memory are fetched by ldmatrix."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.translate import names
from qimeng_attention.translate.sm80.context import ROWS_A_FRAGMENT, Lowering, Lowerings, Refused


def _gemm(n: s.Gemm, low: Lowering) -> None:
    """The second operand is read as it lies: `.T` takes rows along the result's columns, without it ldmatrix
    transposes."""
    if n.asynchronous or n.a.rows is not None or n.b.rows is not None:
        raise Refused(
            n,
            f"{low.target.arch} has no asynchronous GEMM and no operands in slices here",
            "remove `async` and the slice",
        )
    if n.a.transposed:
        raise Refused(
            n,
            f"this generation's lowering has no transposed first operand ({n.a.name}.T)",
            "exchange the operands",
        )
    a, b, out = (low.checked.tiles[x] for x in (n.a.name, n.b.name, n.out))
    if b.axes[0].size % ROWS_A_FRAGMENT or b.axes[1].size % ROWS_A_FRAGMENT:
        raise Refused(
            n,
            f"{n.b.name} {b.describe()} does not divide into blocks of 16",
            "take a tile whose extents are multiples of 16",
        )
    low.warp_rows(out, n)
    flags = f"{str(n.b.transposed).lower()}, {str(n.accumulate).lower()}{low.depth}"
    function = "gemm_shared" if a.space == "shared" else "gemm_operand"
    left = low.shared_at(n.a.name, n.a.slot, n) if a.space == "shared" else names.register(n.a.name)
    low.out.line(f"tl::{function}<{flags}>({names.register(n.out)}, {left}, {low.shared_at(n.b.name, n.b.slot, n)});")


def _reshape(n: s.Reshape, low: Lowering) -> None:
    """Two neighbouring accumulator blocks hold, lane by lane, what one operand block needs: rounding is all."""
    tile = low.checked.tiles[n.out or n.name]
    low.out.line(
        f"{names.register(n.out or n.name)} = tl::to_operand<{names.ELEMENTS[tile.dtype]}>({names.register(n.name)});"
    )


LOWERINGS: Lowerings = {"GEMM": _gemm, "Reshape": _reshape}
