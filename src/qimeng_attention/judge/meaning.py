"""What a spec means: its mask and score as expressions, evaluated at a call, for one head and a stretch of
rows.

An `Operator` can also be weaker than its spec (a clause left out): that is how the judge measures its own
inputs.

Not here: the numbers of a whole call (reference.py), which clauses there are (clauses.py).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Literal

import numpy as np

from qimeng_attention.errors import DiagnosticError, SpecError
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import Environment, Value, align
from qimeng_attention.tl.functions import CONSTANTS, REDUCTIONS
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.parser import parse_expression
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.traverse import expressions, names_in
from qimeng_attention.tl.types import TileType

SIZES = ("B", "Hq", "Hk", "Sq", "Sk")
INDICES = ("q_idx", "kv_idx")
MASK_NAMES = ("b", "h", *INDICES, *SIZES)
SCORE_NAMES = (*MASK_NAMES, "score")


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

    @staticmethod
    def of(spec: AttentionSpec) -> Operator:
        """Read a spec's mask and score.

        Raises:
            SpecError: an expression that does not parse, reads an unknown name, or is of the wrong kind.
        """
        condition = _read("mask", spec.condition, MASK_NAMES, "bool")
        return Operator(condition, _read("score", spec.score_expression, SCORE_NAMES, "number"), spec.default_scale)

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
        value = _environment(call, b, h, rows, keys, {}, double=True).evaluate(self.condition)
        return np.asarray(align(value, INDICES, shape), bool)

    def modified(self, call: Call, b: int, h: int, rows: Array, keys: Array, scores: Array) -> Array:
        """Give the scores after the spec's modifiers, in the precision of `scores`."""
        if self.score is None:
            return scores
        tiles = {"score": Value(scores, INDICES)}
        double = scores.dtype == np.float64
        value = _environment(call, b, h, rows, keys, tiles, double=double).evaluate(self.score)
        return np.asarray(align(value, INDICES, scores.shape), scores.dtype)


def _environment(
    call: Call, b: int, h: int, rows: Array, keys: Array, tiles: dict[str, Value], *, double: bool
) -> Environment:
    ints = {name: getattr(call, name) for name in SIZES} | {"b": b, "h": h}
    return Environment(ints, tiles=tiles, indices={"q_idx": rows, "kv_idx": keys}, double=double)


# ------------------------------------------------------------------ reading a spec's expressions


def _read(field: str, text: str | None, names: tuple[str, ...], kind: str) -> s.Expr | None:
    if text is None:
        return None
    try:
        expression = parse_expression(text)
    except DiagnosticError as error:
        found = error.diagnostics[0]
        message = f"{field} = {text!r} cannot be read at column {found.span.column}: {found.message}"
        raise SpecError(message, hint=found.hint, field=field, value=text, allowed=list(names), nearest=None) from None
    _check_names(field, text, expression, names)
    _check_kind(field, text, expression, names, kind)
    _check_division(field, text, expression)
    return expression


def _check_names(field: str, text: str, expression: s.Expr, names: tuple[str, ...]) -> None:
    for name in sorted(names_in(expression) - set(names) - set(CONSTANTS)):
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'?" if near else f"names are {', '.join(names)}"
        raise SpecError(
            f"{field} = {text!r} reads the unknown name '{name}'",
            hint=hint,
            field=field,
            value=text,
            allowed=list(names),
            nearest=near[0] if near else None,
        )
    for e in expressions(expression):
        if isinstance(e, s.Index | s.Scan) or (isinstance(e, s.Call) and e.function in REDUCTIONS):
            raise SpecError(
                f"{field} = {text!r} uses something beyond elementwise arithmetic",
                hint="write an expression of one element: names, numbers and functions such as exp2",
                field=field,
                value=text,
                allowed=list(names),
                nearest=None,
            )


def _check_kind(field: str, text: str, expression: s.Expr, names: tuple[str, ...], kind: str) -> None:
    scope = Scope(ints=set(names) - {"score"}, filled={"score"})
    if "score" in names:
        scope.tiles["score"] = TileType("score", "register", "f32", ())
    found = scope.type_of(expression, expression.span)
    for finding in scope.findings:
        raise SpecError(
            f"{field} = {text!r}: {finding.message}",
            hint=finding.hint,
            field=field,
            value=text,
            allowed=list(names),
            nearest=None,
        )
    if (found.kind == "bool") != (kind == "bool"):
        wanted = "a condition, as `kv_idx <= q_idx`" if kind == "bool" else "a number, as `score * 2`"
        raise SpecError(
            f"{field} = {text!r} is {'a number' if kind == 'bool' else 'a condition'}",
            hint=f"write {wanted}",
            field=field,
            value=text,
            allowed=list(names),
            nearest=None,
        )


def _check_division(field: str, text: str, expression: s.Expr) -> None:
    """Evaluate once, so that a division by zero is found here and not in the middle of a judgement."""
    call = Call(B=1, Sq=2, Sk=3, Hq=2, Hk=1, Dqk=1, Dv=1, scale=1.0)
    scores = Value(np.zeros((2, 3)), INDICES)
    try:
        _environment(call, 0, 0, np.arange(2), np.arange(3), {"score": scores}, double=True).evaluate(expression)
    except (ZeroDivisionError, OverflowError) as error:
        raise SpecError(
            f"{field} = {text!r} fails with Sq = 2 and Sk = 3: {error}",
            hint="guard the divisor",
            field=field,
            value=text,
            allowed=[],
            nearest=None,
        ) from None
