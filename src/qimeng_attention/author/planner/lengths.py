"""How the sequences of a call lie in memory: all of one length, or packed one behind the other.

Packed, a block finds its sequence by itself. Sequence b has the slots from `start of b // BM + b` on, at least as many
as it has blocks: a grid of `Tq // BM + B` slots needs to know neither the lengths nor the longest of them, and at most
one slot a sequence is left empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from qimeng_attention.packed import OFFSETS, OFFSETS_DTYPE
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.traverse import add, mul

_FIRST_QUERY, _FIRST_KEY = mul(s.Name("block"), s.Name("BM")), mul(s.Name("i"), s.Name("BN"))


@dataclass(frozen=True)
class Even:
    """All sequences of a call have one length."""

    sizes: tuple[str, ...] = ("B", "Sq", "Sk")
    grid: str = "block = 0 : ceildiv(Sq, BM), head = 0 : Hq, batch = 0 : B"
    queries: str = "B, Sq, Hq"
    keys: str = "B, Sk, {heads}"
    lse: str = "B, Hq, Sq"
    tensors: tuple[str, ...] = ()
    lets: tuple[s.Statement, ...] = ()
    batched: bool = True

    def rows(self) -> s.Coordinate:
        """Give where a block's queries lie."""
        return s.Coordinate(_FIRST_QUERY, "q")

    def columns(self) -> s.Coordinate:
        """Give where a tile of keys lies."""
        return s.Coordinate(_FIRST_KEY, "k")


_LETS = """Kernel x
Find batch = 0 : B where clamp(StartQ[batch], 0, Tq) + batch * BM < (slot + 1) * BM  # the sequence of this slot
Let at_q = clamp(StartQ[batch], 0, Tq)  # offsets are held within the tensors, whatever a call gives
Let at_k = clamp(StartK[batch], 0, Tk)
Let begin = at_q // BM + batch  # the sequence's first slot
Let block = max(slot - begin, 0)
Let Sq = where(slot < begin, 0, clamp(StartQ[batch + 1], at_q, Tq) - at_q)  # a slot of no sequence has no queries
Let Sk = clamp(StartK[batch + 1], at_k, Tk) - at_k
"""


def _packed_lets() -> tuple[s.Statement, ...]:
    return parse(_LETS).kernels[0].body


@dataclass(frozen=True)
class Packed:
    """Each sequence has its own length; q and k count within it, and tiles end where it does."""

    sizes: tuple[str, ...] = ("B", "Tq", "Tk")
    grid: str = "slot = 0 : Tq // BM + B down, head = 0 : Hq"  # within a sequence, so, the last block first
    queries: str = "Tq, Hq"
    keys: str = "Tk, {heads}"
    lse: str = "Hq, Tq"
    tensors: tuple[str, ...] = tuple(f"{name} in global (B + 1) {OFFSETS_DTYPE}" for name in OFFSETS.values())
    batched: bool = False

    @property
    def lets(self) -> tuple[s.Statement, ...]:
        """Give what each block works out first."""
        return _packed_lets()

    def rows(self) -> s.Coordinate:
        """Give where a block's queries lie."""
        return s.Coordinate(_FIRST_QUERY, "q", s.Name("Sq"), add(s.Name("at_q"), _FIRST_QUERY))

    def columns(self) -> s.Coordinate:
        """Give where a tile of keys lies."""
        return s.Coordinate(_FIRST_KEY, "k", s.Name("Sk"), add(s.Name("at_k"), _FIRST_KEY))


def lengths_of(spec: AttentionSpec) -> Even | Packed:
    """Give how the sequences of a specification lie."""
    return Packed() if spec.varlen else Even()


def registers(spec: AttentionSpec, given: tuple[int, int]) -> tuple[int, int]:
    """Give the registers a thread of producer and consumers; to find a sequence takes the producer more than 24.

    It spills with 24 and not with 40, and the consumers have 232 then, of which they need 8 fewer (docs/design/0012).
    """
    return (40, 232) if spec.varlen and given == (24, 240) else given


def skipping(spec: AttentionSpec) -> Sequence[str]:
    """Give the line of the Schedule that skips slots of no block, where there are such."""
    return ["skip blocks past the end  # at most one slot a sequence is empty"] if spec.varlen else []
