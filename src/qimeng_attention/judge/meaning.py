"""What a spec means: its mask and score as expressions, evaluated at a call, for one head and a stretch of
rows.

An `Operator` can also be weaker than its spec (a clause left out): that is how the judge measures its own
inputs.

Not here: the numbers of a whole call (reference.py), which clauses there are (clauses.py).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from qimeng_attention.errors import DiagnosticError, SpecError
from qimeng_attention.judge.contents import KINDS, draw
from qimeng_attention.named_tensors import Dims, kernel_name, own_sizes
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import Environment, Value, align
from qimeng_attention.tl.functions import APPROXIMATIONS, CONSTANTS, REDUCTIONS
from qimeng_attention.tl.named import misuse
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.parser import parse_expression
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.traverse import expressions, map_expressions, names_in
from qimeng_attention.tl.types import TensorType, TileType

SIZES = ("B", "Hq", "Hk", "Sq", "Sk")
INDICES = ("q_idx", "kv_idx")
MASK_NAMES = ("b", "h", *INDICES, *SIZES)
SCORE_NAMES = (*MASK_NAMES, "score")
DEFAULT_CONTENTS = KINDS[0]


@dataclass(frozen=True, slots=True)
class Call:
    """The sizes and the scale of one call."""

    B: int
    Sq: int
    Sk: int
    Hq: int
    Hk: int
    Dqk: int
    Dv: int
    scale: float
    own: tuple[tuple[str, int], ...] = ()  # sizes that only named tensors have

    @property
    def sizes(self) -> dict[str, int]:
        """Give the sizes that expressions name."""
        return {name: getattr(self, name) for name in SIZES} | dict(self.own)

    @property
    def group(self) -> int:
        """Give how many query heads share a key head."""
        return self.Hq // self.Hk

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Give the shape of each tensor."""
        return {
            "Q": (self.B, self.Sq, self.Hq, self.Dqk),
            "K": (self.B, self.Sk, self.Hk, self.Dqk),
            "V": (self.B, self.Sk, self.Hk, self.Dv),
            "Out": (self.B, self.Sq, self.Hq, self.Dv),
            "Lse": (self.B, self.Hq, self.Sq),
        }


@dataclass(frozen=True, slots=True)
class Operator:
    """An attention operator; fields with a default differ from it only where a clause is left out."""

    condition: s.Expr | None
    score: s.Expr | None
    default_scale: float
    scale: Literal["call", "default", "none"] = "call"
    head_map: Literal["grouped", "interleaved"] = "grouped"
    lse_of: Literal["modified", "unmodified"] = "modified"
    lse_base: float = float(np.e)
    empty_out: Literal["zero", "mean"] = "zero"
    empty_lse: float = float("-inf")
    approximated: frozenset[str] = frozenset()  # functions that the candidate computes with a stated error
    tensors: Mapping[str, Dims] = field(default_factory=dict)
    contents: Mapping[str, Array] | None = field(default=None, compare=False)  # of the tensors, as programs call them

    @staticmethod
    def of(spec: AttentionSpec) -> Operator:
        """Read a spec's mask and score.

        Raises:
            SpecError: an expression that does not parse, reads an unknown name, or is of the wrong kind;
                a default scale of 0.
        """
        if not np.isfinite(spec.default_scale) or spec.default_scale == 0:
            given = _Text("scale", str(spec.scale), ())
            raise given.wrong("leaves nothing to weigh keys by", "give a number other than 0")
        own = own_sizes(spec.tensors)
        condition = _read(_Text("mask", spec.condition, (*MASK_NAMES, *own)), "bool", spec)
        score = _read(_Text("score", spec.score_expression, (*SCORE_NAMES, *own)), "number", spec)
        return Operator(condition, score, spec.default_scale, tensors=spec.tensors)

    def bind(self, contents: Mapping[str, Array]) -> Operator:
        """Give the operator on a call that hands over these tensors, among others."""
        if not self.tensors:
            return self
        return replace(self, contents={kernel_name(n): contents[kernel_name(n)] for n in self.tensors})

    def drawn(self, call: Call, kind: str = DEFAULT_CONTENTS) -> dict[str, Array]:
        """Draw contents for a call, always the same ones."""
        seed = [KINDS.index(kind), call.B, call.Sq, call.Sk, call.Hq, *(value for _, value in call.own)]
        return draw(np.random.default_rng(seed), self.tensors, call.sizes, kind)

    def environment(
        self, call: Call, b: int, h: int, rows: Array, keys: Array, tiles: dict[str, Value], *, double: bool
    ) -> Environment:
        """Give what an expression reads at a stretch of rows and keys of one head."""
        contents = self.contents if self.contents is not None or not self.tensors else self.drawn(call)
        named = {n: (contents[kernel_name(n)], t.dtype) for n, t in self.tensors.items()} if contents else {}
        ints = call.sizes | {"b": b, "h": h}
        indices = {"q_idx": rows, "kv_idx": keys}
        return Environment(ints, tiles=tiles, indices=indices, tensors=named, double=double)

    def scale_of(self, call: Call) -> float:
        """Give what q . k is multiplied with."""
        return {"call": call.scale, "default": self.default_scale, "none": 1.0}[self.scale]

    def key_head(self, call: Call, h: int) -> int:
        """Give the key head that a query head reads."""
        return h // call.group if self.head_map == "grouped" else h % call.Hk

    @property
    def reads_position(self) -> bool:
        """Tell whether mask or score differ between batch entries or heads."""
        return bool(names_in((self.condition, self.score)) & {"b", "h"})

    def visible(self, call: Call, b: int, h: int, rows: Array, keys: Array) -> Array:
        """Give which of `keys` each of `rows` sees, (rows, keys) bool."""
        shape = (len(rows), len(keys))
        if self.condition is None:
            return np.ones(shape, bool)
        value = self.environment(call, b, h, rows, keys, {}, double=True).evaluate(self.condition)
        return np.asarray(align(value, INDICES, shape), bool)

    def modified(self, call: Call, b: int, h: int, rows: Array, keys: Array, scores: Array) -> Array:
        """Give the scores after the spec's modifiers, in the precision of `scores`."""
        if self.score is None:
            return scores
        tiles = {"score": Value(scores, INDICES)}
        double = scores.dtype == np.float64
        value = self.environment(call, b, h, rows, keys, tiles, double=double).evaluate(self.score)
        return np.asarray(align(value, INDICES, scores.shape), scores.dtype)

    @property
    def rough(self) -> Operator | None:
        """Give the operator with each approximated function off by its largest error; None if that changes nothing."""
        if self.score is None or not self.approximated:
            return None

        def off(e: s.Expr) -> s.Expr:
            if not isinstance(e, s.Call) or e.function not in self.approximated or "score" not in names_in(e.args):
                return e
            return s.Binary("*", e, s.Num(1.0 + APPROXIMATIONS[e.function][1]))

        return replace(self, score=map_expressions(self.score, off))


def own_sizes_of(spec: AttentionSpec, number: int) -> tuple[tuple[str, int], ...]:
    """Choose values for the sizes that only named tensors have: short ones, and some near the spec's numbers."""
    own = own_sizes(spec.tensors)
    if not own:
        return ()
    numbers = {int(x) for x in re.findall(r"\b\d{1,4}\b", f"{spec.mask} {spec.score}")}
    choices = sorted({1, 5, 64, *(max(1, f * n + d) for n in numbers for f in (1, 2) for d in (0, 1))})
    return tuple((name, choices[(number + 3 * i) % len(choices)]) for i, name in enumerate(own))


# ------------------------------------------------------------------ reading a spec's expressions


@dataclass(frozen=True, slots=True)
class _Text:
    """An expression as a field of a spec gives it, and the names it may use."""

    field: str
    text: str | None
    names: tuple[str, ...]

    def wrong(self, what: str, hint: str, nearest: str | None = None) -> SpecError:
        """Give the error to raise."""
        details = {"field": self.field, "value": self.text, "allowed": list(self.names), "nearest": nearest}
        return SpecError(f"{self.field} = {self.text!r} {what}", hint=hint, **details)


def _read(given: _Text, kind: str, spec: AttentionSpec) -> s.Expr | None:
    if given.text is None:
        return None
    try:
        expression = parse_expression(given.text)
    except DiagnosticError as error:
        found = error.diagnostics[0]
        raise given.wrong(f"cannot be read at column {found.span.column}: {found.message}", found.hint) from None
    if wrong := misuse(expression, spec.tensors):
        raise given.wrong(wrong.message, wrong.hint, wrong.nearest)
    _check_names(given, expression, spec)
    _check_kind(given, expression, kind, spec)
    _check_divisors(given, expression, spec)
    return expression


def _check_names(given: _Text, expression: s.Expr, spec: AttentionSpec) -> None:
    for name in sorted(names_in(expression) - set(given.names) - set(CONSTANTS) - set(spec.tensors)):
        near = difflib.get_close_matches(name, given.names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"names are {', '.join(given.names)}"
        raise given.wrong(f"reads the unknown name '{name}'", hint, near[0] if near else None)
    approximations = {name: exact for exact, (name, _) in APPROXIMATIONS.items()}
    for e in expressions(expression):
        if isinstance(e, s.Call) and e.function in approximations:
            exact = approximations[e.function]
            hint = f"write {exact}; a Schedule may say `approximate {exact}`"
            raise given.wrong(f"asks for an approximation, {e.function}", hint)
        if isinstance(e, s.Scan) or (isinstance(e, s.Call) and e.function in REDUCTIONS):
            hint = "write an expression of one element: names, numbers and functions such as exp2"
            raise given.wrong("uses something beyond elementwise arithmetic", hint)


def _check_kind(given: _Text, expression: s.Expr, kind: str, spec: AttentionSpec) -> None:
    scope = Scope(ints=set(given.names) - {"score"}, filled={"score"})
    for name, t in spec.tensors.items():
        dims = tuple(s.Num(d) if isinstance(d, int) else s.Name(d) for d in t.dims)
        scope.tensors[name] = TensorType(name, t.dtype, dims, tuple(map(str, t.dims)))
    if "score" in given.names:
        scope.tiles["score"] = TileType("score", "register", "f32", ())
    found = scope.type_of(expression, expression.span)
    for finding in scope.findings:
        raise given.wrong(f"is wrong: {finding.message}", finding.hint)
    if found.kind == "bool" and kind != "bool":
        raise given.wrong("is a condition", "write a number, as `score * 2`")
    if found.kind != "bool" and kind == "bool":
        raise given.wrong("is a number", "write a condition, as `kv_idx <= q_idx`")


def _check_divisors(given: _Text, expression: s.Expr, spec: AttentionSpec) -> None:
    """Look for integer divisors that are 0 in short calls: arrays would hide it, a kernel would not."""
    divisors = [e.right for e in expressions(expression) if isinstance(e, s.Binary) and e.op in ("//", "%")]
    divisors += [e.args[1] for e in expressions(expression) if isinstance(e, s.Call) and e.function == "ceildiv"]
    for rows, keys in ((1, 1), (2, 3), (130, 65)):
        lengths, own = (spec.B or 1, spec.Sq or rows, spec.Sk or keys), own_sizes_of(spec, 0)
        call = Call(*lengths, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, 1.0, own)
        zeros = {n: np.zeros_like(a) for n, a in Operator(None, None, 1.0, tensors=spec.tensors).drawn(call).items()}
        operator = Operator(None, None, 1.0, tensors=spec.tensors, contents=zeros)
        environment = operator.environment(call, 0, 0, np.arange(call.Sq), np.arange(call.Sk), {}, double=True)
        for divisor in divisors:
            try:
                zero = bool(np.any(np.asarray(environment.evaluate(divisor).data) == 0))
            except ZeroDivisionError:
                zero = True
            if zero:
                where = f"with B = {call.B}, Sq = {call.Sq} and Sk = {call.Sk}"
                raise given.wrong(f"divides by 0 {where}", "keep the divisor from 0, as `max(1, ...)`")
