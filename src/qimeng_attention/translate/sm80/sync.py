"""Groups of asynchronous copies, and the block's barrier."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.translate.sm80.context import Lowering, Lowerings, Refused


def _wait(n: s.Wait, low: Lowering) -> None:
    if n.kind != "copies" or n.count is None:
        raise Refused(
            n,
            f"{low.target.arch} has no lowering of `Wait {n.kind}` here",
            "it needs barriers in memory (sm_90)",
        )
    try:
        pending = integer(n.count, low.checked.fixed)
    except (KeyError, ValueError):
        raise Refused(n, "the number of groups left pending must be known at compile time", "write a number") from None
    low.out.line(f"tl::wait<{pending}>();")


def _commit(n: s.Commit, low: Lowering) -> None:
    low.out.line("tl::commit();")


def _barrier(n: s.Barrier, low: Lowering) -> None:
    low.out.line("tl::sync();")


LOWERINGS: Lowerings = {"Wait": _wait, "Commit": _commit, "Barrier": _barrier}
