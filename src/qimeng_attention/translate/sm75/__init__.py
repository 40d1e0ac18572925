"""Lowerings for sm_75: mma m16n8k8 of fp16, and ldmatrix. Asynchronous copies are refused by name (TL504, TL701).

The accumulator of m16n8k8 lies as that of m16n8k16, and two of its operands side by side lie as one of m16n8k16: a
fragment is the same in both generations, and so is every lowering but that of a product, which takes two instructions.
"""

from __future__ import annotations

from qimeng_attention.translate import sm80
from qimeng_attention.translate.sm80.context import Lowering, Lowerings


class TuringLowering(Lowering):
    """The state of one emission, with the products of this generation."""

    header = "sm75.cuh"
    depth = ", tl::Depth8"


_OF_ASYNCHRONOUS_COPIES = ("Commit", "Wait")  # there is nothing to commit or to wait for
LOWERINGS: Lowerings = {name: f for name, f in sm80.LOWERINGS.items() if name not in _OF_ASYNCHRONOUS_COPIES}
emit = sm80.emit

__all__ = ["LOWERINGS", "TuringLowering", "emit"]
