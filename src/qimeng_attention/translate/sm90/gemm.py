"""Matrix products through wgmma: started asynchronously, each statement one group of them."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.translate import names
from qimeng_attention.translate.sm80.context import ROWS_A_FRAGMENT, Lowering, Lowerings, Refused
from qimeng_attention.translate.sm80.gemm import LOWERINGS as SM80
from qimeng_attention.translate.sm90.context import GroupLowering

_MOST_COLUMNS = 256  # of one wgmma


def _gemm(n: s.Gemm, low: Lowering) -> None:
    """The second operand is read as it lies: `.T` takes rows along the result's columns."""
    assert isinstance(low, GroupLowering)
    a, b, out = (low.checked.tiles[x] for x in (n.a.name, n.b.name, n.out))
    if n.a.transposed or n.b.rows is not None:
        raise Refused(n, "wgmma reads the first operand along its rows, and the second one whole", "exchange them")
    if b.space != "shared" or b.axes[0].size % ROWS_A_FRAGMENT or out.axes[1].size > _MOST_COLUMNS:
        raise Refused(
            n,
            f"{n.b.name} {b.describe()} is no second operand of one wgmma",
            f"take a tile in shared memory of whole blocks of {ROWS_A_FRAGMENT}, at most {_MOST_COLUMNS} columns",
        )
    low.warp_rows(out, n)
    low.latest = None
    flags = f"{str(n.b.transposed).lower()}, {str(n.accumulate).lower()}"
    result, right = names.register(n.out), low.shared_at(n.b.name, n.b.slot, n)
    if a.space == "shared":
        row = low.integer(n.a.rows.start, n) if n.a.rows is not None else "0"
        low.out.line(f"tl::start_gemm<{flags}>({result}, {low.shared_at(n.a.name, n.a.slot, n)}, {row}, {right});")
    else:
        low.out.line(f"tl::start_gemm<{flags}>({result}, {names.register(n.a.name)}, {right});")
    if n.asynchronous:
        low.in_flight.append(n.out)
    else:
        low.out.line("tl::wait_gemm<0>();")
        low.out.line(f"tl::landed({result});")
        low.in_flight = []


LOWERINGS: Lowerings = {"GEMM": _gemm, "Reshape": SM80["Reshape"]}
