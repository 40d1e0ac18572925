"""Expressions on fragments, as for sm_80; which row values are known last is kept for the waits that follow."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.translate.sm80 import compute
from qimeng_attention.translate.sm80.context import Lowering, Lowerings
from qimeng_attention.translate.sm90.context import GroupLowering


def _compute(n: s.Compute, low: Lowering) -> None:
    assert isinstance(low, GroupLowering)
    compute.LOWERINGS["Compute"](n, low)
    if low.in_flight and low.register_type(n.out, n).startswith("tl::RowVector"):
        low.latest = n.out


LOWERINGS: Lowerings = {**compute.LOWERINGS, "Compute": _compute}
