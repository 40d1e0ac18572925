"""Packed sequences: what a description with `varlen` has instead of batches of one length.

Sequences lie one behind the other, (tokens, H, D); prefix sums of their lengths say where each begins. A call names
them `cu_seqlens_q` and `cu_seqlens_k`, programs `StartQ` and `StartK`.
"""

from __future__ import annotations

from collections.abc import Mapping

from qimeng_attention.named_tensors import Dims, Problem, kernel_name

TOKENS = {"Sq": "Tq", "Sk": "Tk"}  # a sequence's own length, and how a program calls the tokens of all sequences
OFFSETS = {"cu_seqlens_q": "StartQ", "cu_seqlens_k": "StartK"}  # how a call and how a program name the prefix sums
OFFSETS_DTYPE = "i32"
OFFSETS_DIM = "B + 1"
_OWN = {*TOKENS.values(), *OFFSETS, *OFFSETS.values(), "slot", "begin", "block"}


def check_tensors(tensors: Mapping[str, Dims]) -> None:
    """Refuse named tensors that have no meaning where each sequence has its own length.

    Raises:
        Problem: one has a dimension of tokens, or the name of something of these programs.
    """
    for name, tensor in tensors.items():
        if {name, kernel_name(name)} & _OWN or set(tensor.dims) & _OWN:
            raise Problem(
                f"the tensor '{name}' has, or is as long as, what packed sequences name themselves",
                f"choose another name, as {name}_values",
                f"{name}_values",
            )
        if lengths := [d for d in tensor.dims if d in TOKENS]:
            raise Problem(
                f"the tensor '{name}' has the dimension {lengths[0]}, which differs from sequence to sequence",
                "with varlen tensors may have values for each head (Hq, Hk) or sequence (B), not for each token",
            )
