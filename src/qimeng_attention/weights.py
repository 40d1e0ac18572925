"""How the scores of a row become weights: what `weights` of a spec may say, and what each word means.

    softmax         P = exp(score) / sum exp(score)
    softmax+sink    P = exp(score) / (sum exp(score) + exp(sink[h]))     sink: a tensor of each call, (Hq)
    softmax1        the same with a sink of 0
    sigmoid         P = 1 / (1 + exp(-score))
    relu, relu2     P = max(score, 0), and its square
    linear          P = score

The sums are over the keys that a query sees; a key that it does not see weighs 0. The last four give each weight from
one score alone: nothing is divided by a sum, and there is no LSE.

Not here: the programs (tl/library), what the words mean in numbers (judge/weighing.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from qimeng_attention.named_tensors import Dims

WeightsName = Literal["softmax", "softmax+sink", "softmax1", "sigmoid", "relu", "relu2", "linear"]
SINK = "sink"  # the tensor that a call hands over
SINK_DIMS = Dims(("Hq",), "f32")
SINK_TYPES = ("f32", "fp16", "bf16")


@dataclass(frozen=True, slots=True)
class Weights:
    """One word of `weights`."""

    name: str
    library: str  # which of the library's sketches: `attention` or `decode`, and this behind it
    formula: str  # of P, with `{over}` for the sum over the keys that are seen
    sink: Literal["none", "tensor", "zero"] = "none"  # a logit without a value, which joins the sum
    macro: str | None = None  # of the library: what makes a weight of one score
    source: str = ""  # who uses it

    @property
    def summed(self) -> bool:
        """Tell whether weights are divided by a sum over the row, whose logarithm is the LSE."""
        return self.library != "_pointwise"

    @property
    def reads_sink(self) -> bool:
        """Tell whether each call hands over sinks."""
        return self.sink == "tensor"

    @property
    def slug(self) -> str:
        """Name it as part of a kernel's name; nothing for softmax alone."""
        return "" if self.name == "softmax" else "_sink" if self.reads_sink else f"_{self.name}"

    @property
    def lse_formula(self) -> str:
        """Give the formula of the LSE, with `{over}` as in `formula`."""
        joined = {"none": "", "tensor": "exp(sink[h]) + ", "zero": "1 + "}[self.sink]
        return f"ln({joined}{{over}} exp(score))" if joined else "ln {over} exp(score)"

    @property
    def blind_lse(self) -> str:
        """Give the LSE of a row that sees no key."""
        return {"none": "-inf", "tensor": "sink[h]", "zero": "0"}[self.sink]

    def describe(self) -> str:
        """Say in a line how a score becomes a weight, and what a row gives that sees nothing."""
        blind = "a row that sees none gives O = 0"
        if not self.summed:
            return f"weights: {self.formula} of each visible key, not divided by a sum; {blind}"
        kind = "softmax over the visible keys"
        if self.sink != "none":
            kind += f" and a sink, a logit of {self.blind_lse} without a value"
        return f"weights: {kind}; {blind} and LSE = {self.blind_lse}"


_TABLE = (
    Weights("softmax", "", "exp(score) / {over} exp(score)"),
    Weights(
        "softmax+sink",
        "_sink",
        "exp(score) / (exp(sink[h]) + {over} exp(score))",
        sink="tensor",
        source="GPT-OSS (OpenAI 2025): a learned logit for each query head",
    ),
    Weights(
        "softmax1",
        "_sink",
        "exp(score) / (1 + {over} exp(score))",
        sink="zero",
        source='"Attention Is Off By One" (Miller 2023); a key of zeros with a value of zeros (`add_zero_attn`)',
    ),
    Weights(
        "sigmoid",
        "_pointwise",
        "1 / (1 + exp(-score))",
        macro="SigmoidWeights",
        source="sigmoid attention (Ramapuram et al. 2024, arXiv 2409.04431), with `score: score - ln(Sk)`",
    ),
    Weights(
        "relu",
        "_pointwise",
        "max(score, 0)",
        macro="ReluWeights",
        source="ReLU in vision transformers (Wortsman et al. 2023, arXiv 2309.08586), with `score: score / Sk`",
    ),
    Weights(
        "relu2",
        "_pointwise",
        "max(score, 0)^2",
        macro="SquaredReluWeights",
        source="gated attention units (Hua et al. 2022, arXiv 2202.10447), with `score: score / Sk`",
    ),
    Weights(
        "linear",
        "_pointwise",
        "score",
        source="retention (Sun et al. 2023, arXiv 2307.08621), its decay in `score`",
    ),
)
WEIGHTS: Mapping[str, Weights] = {w.name: w for w in _TABLE}
