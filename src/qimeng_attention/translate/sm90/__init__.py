"""Lowerings for sm_90a of programs made of roles: the copy engine, rings by barrier, wgmma, registers by role.

What a statement computes on fragments is the same as for sm_80: a warp's part of a wgmma accumulator lies as that of
mma m16n8k16 does.
"""

from __future__ import annotations

from qimeng_attention.translate.sm80.context import Lowerings
from qimeng_attention.translate.sm90 import compute, copy, gemm, kernel, roles
from qimeng_attention.translate.sm90.context import GroupLowering

LOWERINGS: Lowerings = {
    **kernel.LOWERINGS,
    **copy.LOWERINGS,
    **gemm.LOWERINGS,
    **compute.LOWERINGS,
    **roles.LOWERINGS,
}
emit = kernel.emit

__all__ = ["LOWERINGS", "GroupLowering", "emit"]
