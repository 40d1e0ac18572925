"""What a model is asked to write: an operator in words, and the tensors that its kernel is called with."""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.spec import AttentionSpec


@dataclass(frozen=True, slots=True)
class Wanted:
    """An operator: `words` say what is computed; the rest is the kernel's face, in TL's names."""

    words: str
    name: str  # of the kernel
    head_dims: tuple[int, int]  # of queries and keys, of values
    dtype: str
    tensors: tuple[str, ...] = ()  # further inputs, as TL declares them: "Slopes in global (Hq) f32"
    lse: bool = False  # whether the log-sum-exp of each row is an output too

    @classmethod
    def of_spec(cls, spec: AttentionSpec, words: str) -> Wanted:
        """Give the face that the planner's program for a description has."""
        from qimeng_attention.named_tensors import kernel_name

        named = tuple(
            f"{kernel_name(n)} in global ({', '.join(map(str, t.dims))}) {t.dtype}" for n, t in spec.tensors.items()
        )
        return cls(words, spec.kernel_name, (spec.Dqk, spec.Dv), spec.dtype, named, "LSE" in spec.outputs)

    def interface(self) -> str:
        """Name every tensor, size and scalar of the kernel, one a line."""
        qk, v = self.head_dims
        same = qk == v
        columns, of_v = ("D", "D") if same else ("D", "Dv")
        lines = [
            f"Q in global (B, Sq, Hq, {columns}) {self.dtype}",
            f"K in global (B, Sk, Hk, {columns}) {self.dtype}",
            f"V in global (B, Sk, Hk, {of_v}) {self.dtype}",
            *self.tensors,
            f"Out in global (B, Sq, Hq, {of_v}) {self.dtype}, the output",
            *(["Lse in global (B, Hq, Sq) f32, the second output"] if self.lse else []),
        ]
        sizes = f"Size D = {qk}" if same else f"Size D = {qk}, Dv = {v}"
        head = (
            f"Kernel {self.name}; Size B, Sq, Sk, Hq, Hk are arguments of each call, {sizes} compiled in; "
            "Scalar scale f32 > 0. Tensors, by these names:"
        )
        return "\n".join([head, *(f"- {line}" for line in lines)])
