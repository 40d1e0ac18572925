"""What a user asks for: an attention operator, described without a word about how it is computed.

    S = scale * Q K^T          score = score expression of S, b, h, q_idx, kv_idx
    P = softmax over the kv_idx that the mask lets q_idx see, or other weights (weights.py)
    O = P V,  LSE = ln sum exp(score)

Tensors are (B, S, H, D). `q_idx` and `kv_idx` count from 0; sequences are aligned at their ends, so that causal is
`kv_idx <= q_idx + Sk - Sq`. A row that sees nothing gives O = 0 and LSE = -inf. Expressions may index named tensors,
which each call hands over (named_tensors.py).

Not here: whether the generator can make it (author/), and what it means in numbers (judge/reference.py).
"""

from __future__ import annotations

import difflib
import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_serializer,
    field_validator,
    model_validator,
)

from qimeng_attention.caches import PAGE_SIZES
from qimeng_attention.caches import describe as describe_cache
from qimeng_attention.errors import SpecError
from qimeng_attention.named_tensors import Dims, Problem, declared, own_sizes
from qimeng_attention.packed import check_tensors
from qimeng_attention.weights import SINK, SINK_DIMS, SINK_TYPES, WEIGHTS, Weights, WeightsName

DTYPES = ("fp16", "bf16")
CAUSAL = "kv_idx <= q_idx + Sk - Sq"
_WINDOW = re.compile(r"window\s*[:(]?\s*(\d+)\s*(?:,\s*(\d+)\s*)?\)?$")
_NAMED_MASKS = ("full", "causal", "window:LEFT", "window:LEFT,RIGHT")
MOST = 1 << 24  # above any head count or length one call can hold


class AttentionSpec(BaseModel):
    """An attention operator.

    Sizes without a value are arguments of each call. Expressions use the names b, h, q_idx, kv_idx, B, Hq, Hk, Sq, Sk
    and the functions of the language; `score` is the score after scaling.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: str = Field(default="", description="names the kernel; made from the other fields if empty")
    Hq: int = Field(default=32, ge=1, le=MOST, description="query heads")
    Hk: int = Field(default=0, ge=0, le=MOST, description="key and value heads; 0 means as many as query heads")
    Dqk: int = Field(default=128, ge=1, le=512, description="head dim of queries and keys")
    Dv: int = Field(default=0, ge=0, le=512, description="head dim of values; 0 means Dqk")
    dtype: Literal["fp16", "bf16"] = Field(default="bf16", description="type of Q, K, V and O")
    mask: str = Field(default="full", description="full, causal, window:LEFT, window:LEFT,RIGHT, or a condition")
    score: str = Field(default="score", description="an expression of the scaled score")
    softcap: float | None = Field(default=None, gt=0, description="cap * tanh(score / cap), before `score`")
    weights: WeightsName = Field(
        default="softmax", description="what makes weights of scores: softmax, softmax+sink, sigmoid, relu, relu2, ..."
    )
    scale: float | None = Field(
        default=None, description="the default scale; 1 / sqrt(Dqk) if none; each call may give its own"
    )
    scale_sign: Literal["positive", "any"] = Field(default="positive", description="which scales a call may give")
    B: int | None = Field(default=None, ge=1, le=MOST, description="batch, if fixed")
    Sq: int | None = Field(default=None, ge=1, le=MOST, description="query length, if fixed")
    Sk: int | None = Field(default=None, ge=1, le=MOST, description="key length, if fixed")
    varlen: bool = Field(
        default=False, description="sequences of different lengths, packed; each call gives cu_seqlens_q and _k"
    )
    outputs: tuple[Literal["O", "LSE"], ...] = Field(default=("O", "LSE"), description="what the operator gives")
    tensors: dict[str, Dims] = Field(
        default_factory=dict, description="what expressions index besides: name -> {dims: [...], dtype: ...}"
    )

    seqused_k: bool = Field(default=False, description="each call says how many keys of each entry count")
    page_size: int | None = Field(
        default=None, description="keys of a page, where k and v are caches in pages; implies seqused_k"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """Let Hk follow Hq and Dv follow Dqk; give weights their sink, and no LSE where there is none; entries of a
        cache in pages have lengths of their own."""
        if isinstance(values, dict):
            values = dict(values)
            weights = WEIGHTS.get(str(values.get("weights")), WEIGHTS["softmax"])
            if weights.reads_sink and isinstance(values.get("tensors", {}), dict):
                values["tensors"] = {SINK: SINK_DIMS, **values.get("tensors", {})}
            if not weights.summed and "outputs" not in values:
                values["outputs"] = ("O",)
            if not values.get("Hk") and "Hk" not in values:
                values["Hk"] = values.get("Hq", 32)
            if not values.get("Dv") and "Dv" not in values:
                values["Dv"] = values.get("Dqk", 128)
            if values.get("page_size") is not None:
                values["seqused_k"] = True
        return values

    @field_validator("Hk", "Dv")
    @classmethod
    def _positive(cls, value: int) -> int:
        if value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("page_size")
    @classmethod
    def _page_size(cls, value: int | None) -> int | None:
        if value is not None and value not in PAGE_SIZES:
            raise ValueError("must be a power of two from 1 to 256")
        return value

    @field_validator("tensors", mode="plain")
    @classmethod
    def _tensors(cls, value: Any) -> dict[str, Dims]:
        return declared(value)

    @field_serializer("tensors")
    def _tensors_as_data(self, value: dict[str, Dims]) -> dict[str, Any]:
        return {name: {"dims": list(t.dims), "dtype": t.dtype} for name, t in value.items()}

    @field_validator("outputs", mode="before")
    @classmethod
    def _outputs(cls, value: Any) -> Any:
        return tuple(value) if isinstance(value, list) else (value,) if isinstance(value, str) else value

    @field_validator("outputs")
    @classmethod
    def _has_o(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if "O" not in value or len(set(value)) != len(value):
            raise ValueError("must be O, or O and LSE")
        return value

    @model_validator(mode="after")
    def _packed(self) -> AttentionSpec:
        if self.varlen:
            check_tensors(self.tensors)
        return self

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if value and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", value):
            raise ValueError("must be an identifier of at most 64 letters, digits and underscores")
        return value

    # -------------------------------------------------------------- meaning
    @property
    def weighing(self) -> Weights:
        """Give what `weights` stands for."""
        return WEIGHTS[self.weights]

    @property
    def condition(self) -> str | None:
        """Give the mask as a condition, or None where every key is seen."""
        text = self.mask.strip()
        if text == "full":
            return None
        if text == "causal":
            return CAUSAL
        if window := _WINDOW.fullmatch(text):
            left, right = int(window[1]), int(window[2] or 0)
            end = f"{CAUSAL} + {right}" if right else CAUSAL
            return f"{end} and kv_idx >= q_idx + Sk - Sq - {left}"
        return text

    @property
    def score_expression(self) -> str | None:
        """Give the score modifiers as one expression of `score`, or None where there are none."""
        text = self.score.strip()
        if self.softcap is not None:
            capped = f"({self.softcap!r} * tanh(score / {self.softcap!r}))"
            return capped[1:-1] if text == "score" else re.sub(r"\bscore\b", capped, text)
        return None if text == "score" else text

    @property
    def default_scale(self) -> float:
        """Give the scale of a call that names none."""
        return float(self.scale) if self.scale is not None else float(self.Dqk) ** -0.5

    @property
    def kernel_name(self) -> str:
        """Give the kernel's name."""
        if self.name:
            return self.name
        kind = "mha" if self.Hq == self.Hk else "mqa" if self.Hk == 1 else "gqa"
        mask = (
            self.mask
            if self.mask in ("full", "causal")
            else "window"
            if _WINDOW.fullmatch(self.mask.strip())
            else "masked"
        )
        mods = ("_softcap" if self.softcap is not None else "") + ("_scored" if self.score.strip() != "score" else "")
        mods += self.weighing.slug + ("_varlen" if self.varlen else "")
        mods += f"_paged{self.page_size}" if self.page_size is not None else "_seqused" if self.seqused_k else ""
        return f"{kind}_{mask}{mods}_d{self.Dqk}{'' if self.Dqk == self.Dv else f'_{self.Dv}'}_{self.dtype}"

    def describe(self) -> list[str]:
        """State the operator with everything a reader might otherwise assume."""
        heads = f"{self.Hq} query heads, {self.Hk} key/value heads ({_shared(self.Hq // self.Hk)})"
        lines = [
            f"{self.kernel_name}: {heads}, head dim {self.Dqk} (values {self.Dv}), {self.dtype}",
            f"{self.layout()}, {self.lengths()}, any strides with a last one of 1",
            *describe_cache(self),
            "score = scale * (q . k), scale given at each call "
            f"({self.scale_sign}), {self.default_scale:.6g} by default",
        ]
        if self.score_expression:
            lines.append(f"then score = {self.score_expression}")
        if self.tensors:
            listed = ", ".join(f"{name} {t.describe()}" for name, t in self.tensors.items())
            own = own_sizes(self.tensors)
            read = f"; {', '.join(own)} as each call has it" if own else ""
            lines.append(f"named tensors of each call: {listed}{read}; an element outside of one reads 0")
        lines.append(f"visible keys: {self.visible_keys()}")
        lines.append(self.weighing.describe())
        natural = " (LSE is a natural logarithm, of the modified scores)" if self.weighing.summed else ""
        lines.append(f"outputs: {', '.join(self.outputs)}{natural}")
        return lines

    def layout(self) -> str:
        """Say how tensors lie."""
        if not self.varlen:
            return "tensors (B, S, H, D)"
        return (
            "tensors (tokens, H, D), one sequence behind the other; cu_seqlens_q and cu_seqlens_k say where each begins"
        )

    def lengths(self) -> str:
        """Say which batches and lengths a call may have."""
        if self.varlen:
            return f"B = {self.B or 'any'} sequences, Sq and Sk those of each"
        fixed = [("B", self.B), ("Sq", self.Sq), *([] if self.page_size else [("Sk", self.Sk)])]
        return ", ".join(f"{k} = {v if v is not None else 'any'}" for k, v in fixed)

    def visible_keys(self) -> str:
        """Say which keys a query sees, bounds and alignment spelled out."""
        aligned = "; the last query is aligned with the last key"
        if self.condition is None:
            return "all"
        if window := _WINDOW.fullmatch(self.mask.strip()):
            right = f" and the {window[2]} after it" if window[2] and int(window[2]) else ""
            return f"{self.condition} (a query sees itself, the {window[1]} keys before it{right}{aligned})"
        return self.condition + (aligned if self.mask == "causal" else "")

    # -------------------------------------------------------------- making and loading
    @classmethod
    def make(cls, **fields: Any) -> AttentionSpec:
        """Make a spec; the errors name field, value, allowed range and the nearest valid choice.

        Raises:
            SpecError: a field that makes no sense.
        """
        try:
            spec = cls(**fields)
        except ValidationError as error:
            raise _explained(error, fields) from None
        if spec.varlen and (given := [n for n in ("Sq", "Sk") if getattr(spec, n) is not None]):
            raise SpecError(
                f"{given[0]} = {getattr(spec, given[0])} is fixed, but with varlen each sequence has its own length",
                hint=f"leave {given[0]} out",
                field=given[0],
                value=getattr(spec, given[0]),
            )
        if spec.Hq % spec.Hk:
            divisors = [d for d in range(1, spec.Hq + 1) if spec.Hq % d == 0]
            nearest = min(divisors, key=lambda d: abs(d - spec.Hk))
            raise SpecError(
                f"Hk = {spec.Hk} does not divide Hq = {spec.Hq}: each key head serves the same number of query heads",
                hint=f"nearest valid choice: Hk = {nearest}",
                field="Hk",
                value=spec.Hk,
                allowed=divisors[:32],
                nearest=nearest,
            )
        _check_weights(spec)
        if spec.page_size is not None:
            _refuse_lengths_of_pages(spec)
        return spec

    @classmethod
    def load(cls, path: str | Path) -> AttentionSpec:
        """Read a spec from a YAML or JSON file.

        Raises:
            SpecError: no such file, no mapping, or a field that makes no sense.
        """
        try:
            text = Path(path).read_text("utf-8")
            data = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
        except (OSError, UnicodeDecodeError) as error:
            raise SpecError(
                f"cannot read the spec {path}: {error.__class__.__name__}",
                hint="name a YAML or JSON file",
                field="spec",
                value=str(path),
            ) from None
        except (yaml.YAMLError, ValueError):
            raise SpecError(
                f"{path} is neither YAML nor JSON",
                hint="write `Hq: 32` on lines of its own",
                field="spec",
                value=str(path),
            ) from None
        if not isinstance(data, dict):
            raise SpecError(
                f"{path} holds no mapping of fields",
                hint="write `Hq: 32` on lines of its own",
                field="spec",
                value=str(path),
            )
        return cls.make(**{str(k): v for k, v in data.items()})


def _check_weights(spec: AttentionSpec) -> None:
    """Refuse an LSE where no sum is taken, and a sink of another shape or type."""
    if not spec.weighing.summed and "LSE" in spec.outputs:
        raise SpecError(
            f"outputs: LSE is asked for, but weights: {spec.weights} takes no sum whose logarithm it could be",
            hint="leave outputs out, or write outputs: [O]",
            field="outputs",
            value=list(spec.outputs),
            allowed=[["O"]],
            nearest=["O"],
        )
    sink = spec.tensors.get(SINK)
    if spec.weighing.reads_sink and sink is not None and (sink.dims != SINK_DIMS.dims or sink.dtype not in SINK_TYPES):
        raise SpecError(
            f"the tensor '{SINK}' is declared as {sink.describe()}; weights: {spec.weights} reads one number of a "
            "floating type for each query head",
            hint=f"leave it out: {SINK} is then {SINK_DIMS.describe()}",
            field="tensors",
            value=SINK,
            allowed=[f"(Hq) {dtype}" for dtype in SINK_TYPES],
            nearest=SINK_DIMS.describe(),
        )


def _refuse_lengths_of_pages(spec: AttentionSpec) -> None:
    """How many keys an entry may have is told by its row of the page table."""
    if spec.Sk is not None:
        raise SpecError(
            f"Sk = {spec.Sk} and page_size = {spec.page_size} say two things: the page table tells how many keys fit",
            hint="leave Sk out",
            field="Sk",
            value=spec.Sk,
        )
    for name, tensor in spec.tensors.items():
        if "Sk" in tensor.dims:
            raise SpecError(
                f"the tensor '{name}' has as many elements as keys, of which entries in pages have each their own",
                hint=f"give it a size of its own, as {name}: {{dims: [B, N], ...}}",
                field="tensors",
                value=name,
            )


def _shared(group: int) -> str:
    return "one for each query head" if group == 1 else f"{group} query heads share one"


def _explained(error: ValidationError, fields: dict[str, Any]) -> SpecError:
    """Turn pydantic's first finding into a SpecError."""
    first = error.errors()[0]
    problem = first.get("ctx", {}).get("error")
    if isinstance(problem, Problem):
        details = {"field": "tensors", "value": _plain(fields.get("tensors")), "nearest": problem.nearest}
        return SpecError(problem.message, hint=problem.hint, allowed=problem.allowed, **details)
    name = str(first["loc"][0]) if first["loc"] else "spec"
    known = list(AttentionSpec.model_fields)
    if first["type"] == "extra_forbidden":
        near = [k for k in known if k.lower() == name.lower()] or difflib.get_close_matches(
            name, known, n=1, cutoff=0.3
        )
        hint = f"did you mean '{near[0]}'?" if near else f"fields are {', '.join(known)}"
        return SpecError(
            f"unknown field '{name}'",
            hint=hint,
            field=name,
            value=_plain(fields.get(name)),
            allowed=known,
            nearest=near[0] if near else None,
        )
    value = fields.get(name)
    allowed, nearest = _allowed(name, value)
    message = f"{name} = {value!r} is not valid: {str(first['msg']).removeprefix('Value error, ')}"
    return SpecError(
        message,
        hint=f"allowed: {allowed}; nearest valid choice: {nearest}",
        field=name,
        value=_plain(value),
        allowed=allowed,
        nearest=nearest,
    )


def _allowed(name: str, value: Any) -> tuple[str, Any]:
    """Give a field's range in words and the nearest valid choice."""
    if name == "dtype":
        near = difflib.get_close_matches(str(value), DTYPES, n=1, cutoff=0.0)
        return ", ".join(DTYPES), near[0] if near else "bf16"
    if name == "weights":
        near = difflib.get_close_matches(str(value).lower(), WEIGHTS, n=1, cutoff=0.3)
        return ", ".join(WEIGHTS), near[0] if near else "softmax"
    if name == "outputs":
        return "[O] or [O, LSE]", ["O", "LSE"]
    if name == "page_size":
        asked = value if isinstance(value, int) and not isinstance(value, bool) else 64
        return ", ".join(map(str, PAGE_SIZES)), min(PAGE_SIZES, key=lambda size: abs(size - asked))
    if name == "seqused_k":
        return "true or false", True
    if name == "scale_sign":
        return "positive, any", "positive"
    if name == "softcap":
        return "a positive number, or none", None
    if name == "name":
        return "an identifier", re.sub(r"\W", "_", str(value))[:64] or None
    limit = 512 if name in ("Dqk", "Dv") else MOST
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
    return f"an integer from 1 to {limit}", min(
        max(int(number) if number == number and abs(number) < 1e18 else 1, 1), limit
    )


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool | type(None)) else repr(value)
