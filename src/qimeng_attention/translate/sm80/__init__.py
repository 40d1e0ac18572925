"""Lowerings for sm_80 and later through sm_80's instructions: mma m16n8k16, ldmatrix, cp.async.

One lowering for each statement, under the statement's name; those of other generations (roles, rings by barrier,
asynchronous GEMM) are refused by name.
"""

from __future__ import annotations

from qimeng_attention.translate.sm80 import compute, control, gather, gemm, kernel, pieces, sync
from qimeng_attention.translate.sm80.context import Lowering, Lowerings

LOWERINGS: Lowerings = {
    **kernel.LOWERINGS,
    **pieces.LOWERINGS,
    **gather.LOWERINGS,
    **gemm.LOWERINGS,
    **compute.LOWERINGS,
    **control.LOWERINGS,
    **sync.LOWERINGS,
}
emit = kernel.emit

__all__ = ["LOWERINGS", "Lowering", "emit"]
