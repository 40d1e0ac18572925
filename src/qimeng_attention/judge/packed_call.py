"""The sizes and shapes of a call of packed sequences, as programs see them.

Not here: which sequences a judged call has (packed.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.judge.meaning import Call
from qimeng_attention.packed import OFFSETS
from qimeng_attention.spec import AttentionSpec


@dataclass(frozen=True, slots=True)
class PackedCall(Call):
    """A call of packed sequences: B of them, Sq and Sk the tokens of all."""

    @property
    def sizes(self) -> dict[str, int]:
        """Give the sizes that programs name."""
        sizes = {"B": self.B, "Tq": self.Sq, "Tk": self.Sk, "Hq": self.Hq, "Hk": self.Hk}
        return sizes | dict(self.own)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of each tensor."""
        return {
            "Q": (self.Sq, self.Hq, self.Dqk),
            "K": (self.Sk, self.Hk, self.Dqk),
            "V": (self.Sk, self.Hk, self.Dv),
            "Out": (self.Sq, self.Hq, self.Dv),
            "Lse": (self.Hq, self.Sq),
            **dict.fromkeys(OFFSETS.values(), (self.B + 1,)),
        }


def as_packed(call: Call, spec: AttentionSpec) -> Call:
    """Give a call as the programs of a specification see it: itself, or one of as many tokens."""
    if not spec.varlen:
        return call
    return PackedCall(call.B, call.Sq, call.Sk, call.Hq, call.Hk, call.Dqk, call.Dv, call.scale, call.own)
