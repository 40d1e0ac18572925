"""A user's own function beside a description: do they agree, and what does the function give in a case of the judge?

    def attention(q, k, v, scale, slopes):   # arrays by name: those it asks for
        ...
        return out                           # (B, Sq, Hq, Dv) float64, or (out, lse) with lse (B, Hq, Sq)

It is called with q (B, Sq, Hq, Dqk), k (B, Sk, Hk, Dqk) and v (B, Sk, Hk, Dv) in float64, the description's named
tensors (floating ones in float64), `scale`, and sizes (B, Sq, Sk, Hq, Hk, Dqk, Dv, and those that only named tensors
have). Where the description shows a row no key it may give 0 or NaN, as PyTorch's softmax does.

Not here: how it is called and kept apart (reference_process.py), what the judge does with it (judge.py).
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge.clauses import clauses
from qimeng_attention.judge.contents import KINDS
from qimeng_attention.judge.inputs import TELLING, Budget, Case, cases, values
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.reference import Truth, truth
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.named_tensors import kernel_name, own_sizes
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.numerics import INTEGER_TYPES, Array
from qimeng_attention.tl.traverse import expressions, map_expressions

SMALL = Budget("small", heads=2, keys=2_500, scores=400_000, thorough=False)
TILES = (16, 16)  # lengths lie around these while nothing is known of a program
LARGEST = 1 << 24  # scores of a call for which the function is asked: 128 MB in float64
# How closely it must agree, relative to a row's sum of |weight| |value|: a score that is off by d moves weights by
# 2 d. What computes in float64 is within EXACT; what rounds to float32 somewhere is within SINGLE, and that is said.
EXACT, SINGLE = 2.0**-36, 2.0**-17
EXACT_SLACK, SINGLE_SLACK = 2.0**-26, 2.0  # of what float32 may move a score by
ARRAYS = ("q", "k", "v")
_CALL_SIZES = ("B", "Sq", "Sk", "Hq", "Hk", "Dqk", "Dv")
Tensors: TypeAlias = Mapping[str, Array]
Progress: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Outputs:
    """What the function gives; `lse` is None where it gives none."""

    out: Array
    lse: Array | None


@dataclass(frozen=True)
class Agreement:
    """How a function and a description were compared."""

    cases: int
    worst: float  # the largest difference, relative to its row
    precision: str  # "float64", or "float32" where the function rounds to it

    def __str__(self) -> str:
        note = "" if self.precision == "float64" else "; it rounds to float32"
        return f"agrees with the description in {self.cases} cases, within {self.worst:.1e} of a row's size{note}"


class OwnFunction:
    """A user's function, as the judge asks it.

    Raises:
        JudgeError: it asks for something that no call has.
    """

    def __init__(self, function: Reference, spec: AttentionSpec) -> None:
        self.function, self.spec, self.name = function, spec, function.__name__
        self._known = {**{n: n for n in ARRAYS}, **{n.upper(): n for n in ARRAYS}}  # also as programs call them
        self._names = [*ARRAYS, *spec.tensors, "scale", *_CALL_SIZES, *own_sizes(spec.tensors)]
        self._wanted = self._asked()
        self.agreement: Agreement | None = None  # known once `agree` has compared them

    def record(self) -> dict[str, Any]:
        """Say what a verdict was also reached against."""
        agreement = asdict(self.agreement) if self.agreement is not None else None
        function = self.function
        return {"name": self.name, "framework": function.framework, "sha256": function.digest, "agreement": agreement}

    def _asked(self) -> list[str]:
        parameters = self.function.__signature__.parameters.values()
        wanted: list[str] = []
        for p in parameters:
            if p.kind is p.POSITIONAL_ONLY:
                raise self.function.wrong(f"takes {p.name} by its place", f"let it take {p.name} by name")
            if p.kind is inspect.Parameter.VAR_POSITIONAL or p.kind is inspect.Parameter.VAR_KEYWORD:
                continue
            if self._known.get(p.name, p.name) in self._names:
                wanted.append(p.name)
            elif p.default is p.empty:
                near = difflib.get_close_matches(p.name, self._names, n=1, cutoff=0.4)
                hint = f"did you mean {near[0]}?" if near else f"a call has {', '.join(self._names)}"
                raise self.function.wrong(f"asks for {p.name}, which a call does not have", hint)
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            taken = {self._known.get(name, name) for name in wanted}
            wanted += [name for name in self._names if name not in taken]
        return wanted

    def fits(self, call: Call) -> bool:
        """Tell whether the function is asked about a call: not about empty ones, nor about very long ones."""
        return min(call.B, call.Sq, call.Sk) > 0 and call.B * call.Hq * call.Sq * call.Sk <= LARGEST

    def __call__(self, call: Call, tensors: Tensors, place: str) -> Outputs:
        """Call the function.

        Raises:
            JudgeError: whatever it does wrong.
        """
        given = self._given(call, tensors)
        try:
            found = self.function(**given)
        except JudgeError as error:
            error.message = f"{error.message} ({place})"
            error.args = (error.message,)
            raise
        return self._outputs(found, call, place)

    def _given(self, call: Call, tensors: Tensors) -> dict[str, Any]:
        arrays = {n: tensors[n.upper()].astype(np.float64) for n in ARRAYS}
        for name, tensor in self.spec.tensors.items():
            held = np.asarray(tensors[kernel_name(name)])
            floating = tensor.dtype not in (*INTEGER_TYPES, "bool")
            arrays[name] = held.astype(np.float64) if floating else held
        sizes = {n: getattr(call, n) for n in _CALL_SIZES} | dict(call.own)
        known = {**arrays, "scale": call.scale, **sizes}
        return {name: known[self._known.get(name, name)] for name in self._wanted}

    def _outputs(self, found: Mapping[str, Array], call: Call, place: str) -> Outputs:
        shapes = call.shapes()
        by_name = {name.lower(): value for name, value in found.items()}
        names = ("out", "lse") if "out" in by_name else ("0", "1")
        if names[0] not in by_name:
            given = ", ".join(found) or "nothing"
            raise self._wrong(f"gives {given}, and no out", place, "return out, or (out, lse)")
        out = self._checked("out", by_name[names[0]], shapes["Out"], place)
        lse = by_name.get(names[1])
        return Outputs(out, None if lse is None else self._checked("lse", lse, shapes["Lse"], place))

    def _checked(self, name: str, value: Array, shape: tuple[int, ...], place: str) -> Array:
        if value.shape != shape:
            raise self._wrong(f"gives {name} of shape {value.shape}, expected {shape}", place, _axes(name))
        if value.dtype != np.float64:
            what = f"gives {name} in {value.dtype}, expected float64"
            raise self._wrong(what, place, "compute in the type of its inputs, which is float64")
        return value

    def _wrong(self, what: str, place: str, hint: str) -> JudgeError:
        return self.function.wrong(f"{what} ({place})", hint)

    # -------------------------------------------------------------- against the description
    def expected(self, call: Call, tensors: Tensors, want: Truth, blind: Array, place: str) -> Truth:
        """Give the truth as the function has it; rows that see no key stay the description's.

        Raises:
            JudgeError: it gives something that is no number where a row sees a key.
        """
        found = self(call, tensors, place)
        self.check_numbers(found, blind, place)
        out = np.where(blind[..., None], want.out, found.out)
        if found.lse is None:
            return replace(want, out=out)
        return replace(want, out=out, lse=np.where(blind.swapaxes(1, 2), want.lse, found.lse))

    def check_numbers(self, found: Outputs, blind: Array, place: str) -> None:
        """Refuse what is no number where a row sees a key, and a number where it sees none."""
        bad = ~np.isfinite(found.out) & ~blind[..., None]
        if bad.any():
            at = tuple(map(int, np.argwhere(bad)[0]))
            hint = "subtract the row's maximum before exp, and mask by -inf"
            raise self._wrong(f"gives {_shown(found.out[at])} at out{list(at)}", place, hint)
        if found.lse is not None and (bad := ~np.isfinite(found.lse) & ~blind.swapaxes(1, 2)).any():
            at = tuple(map(int, np.argwhere(bad)[0]))
            raise self._wrong(f"gives {_shown(found.lse[at])} at lse{list(at)}", place, "lse is ln sum exp(score)")
        shown = np.isfinite(found.out) & (found.out != 0) & blind[..., None]
        if shown.any():
            at = tuple(map(int, np.argwhere(shown)[0]))
            what = f"gives {_shown(found.out[at])} at out{list(at)}, where the description shows the row no key"
            raise self._wrong(what, place, "compare the masks: lengths may differ, and Sq may be more than Sk")


def _shown(value: Any) -> str:
    return f"{float(value):.9g}"


def _axes(name: str) -> str:
    return "out is (B, Sq, Hq, Dv)" if name == "out" else "lse is (B, Hq, Sq)"


def blind_rows(operator: Operator, call: Call) -> Array:
    """Tell which rows see no key, (B, Sq, Hq) bool; the operator holds the named tensors of the call."""
    found = np.zeros((call.B, call.Sq, call.Hq), bool)
    if operator.condition is None:
        return found
    rows, keys = np.arange(call.Sq), np.arange(call.Sk)
    for b in range(call.B):
        for h in range(call.Hq):
            found[b, :, h] = ~operator.visible(call, b, h, rows, keys).any(axis=1)
    return found


# ------------------------------------------------------------------ do they agree?


def agree(own: OwnFunction, *, seed: int, progress: Progress | None = None) -> Agreement:
    """Compare a user's function with the description in float64, the smallest case first.

    Raises:
        JudgeError: they differ, which names the first case, the element and both values; or the function is random,
            does not depend on an input, or does something else wrong.
    """
    spec, operator = own.spec, Operator.of(own.spec)
    planned = _planned(own)
    worst, single = 0.0, False
    for case in [c for c in planned if c.family == "normal" and c.call.Sk > 1][-1:]:
        _check_dependence(own, operator, case, seed)
    for done, case in enumerate(planned):
        if progress is not None:
            progress(done, len(planned), case.name)
        tensors = values(case, operator, spec.dtype, seed)
        bound = operator.bind(tensors)
        want = truth(bound, case.call, tensors["Q"], tensors["K"], tensors["V"])
        blind = blind_rows(bound, case.call)
        found = own.expected(case.call, tensors, want, blind, case.name)
        share, rounded = compare_own(own, case, tensors, found, want)
        worst, single = max(worst, share), single or rounded
    if progress is not None:
        progress(len(planned), len(planned), "")
    own.agreement = Agreement(len(planned), worst, "float32" if single else "float64")
    return own.agreement


def _planned(own: OwnFunction) -> list[Case]:
    """Give the cases, small ones first; where values alone would tell little, with named tensors of every kind."""
    found = []
    for case in cases(own.spec, TILES, SMALL):
        kinds = KINDS if own.spec.tensors and case.family in TELLING else (case.contents,)
        name = case.name.removesuffix(f", tensors: {case.contents}")
        told = [f"{name}, tensors: {kind}" if own.spec.tensors else name for kind in kinds]
        found += [replace(case, name=n, contents=kind) for n, kind in zip(told, kinds, strict=True)]
    found = [c for c in found if own.fits(c.call)]
    return sorted(found, key=lambda c: c.call.B * c.call.Hq * c.call.Sq * c.call.Sk)


def _check_again(own: OwnFunction, case: Case, tensors: Tensors, before: Outputs) -> None:
    again = own(case.call, tensors, case.name)
    same = np.array_equal(again.out, before.out, equal_nan=True)
    if before.lse is not None and again.lse is not None:
        same = same and np.array_equal(again.lse, before.lse, equal_nan=True)
    if not same:
        what = f"gives other numbers when it is called again ({case.name})"
        raise own.function.wrong(what, "let it draw nothing at random and keep no state")


def _check_dependence(own: OwnFunction, operator: Operator, case: Case, seed: int) -> None:
    """Refuse a function that an input does not move where it moves the description."""
    tensors = values(case, operator, own.spec.dtype, seed)
    random = np.random.default_rng(seed)
    bound = operator.bind(tensors)
    before = own(case.call, tensors, case.name)
    own.check_numbers(before, blind_rows(bound, case.call), case.name)
    _check_again(own, case, tensors, before)
    want = truth(bound, case.call, *(tensors[n.upper()] for n in ARRAYS))
    for name in ARRAYS:
        shuffled = random.permutation(tensors[name.upper()].ravel()).reshape(tensors[name.upper()].shape)
        other = {**tensors, name.upper(): shuffled}
        if not np.array_equal(before.out, own(case.call, other, case.name).out, equal_nan=True):
            continue
        if not np.array_equal(truth(bound, case.call, *(other[n.upper()] for n in ARRAYS)).out, want.out):
            raise own.function.wrong(f"gives the same out whatever {name} is ({case.name})", f"let it use {name}")


def compare_own(own: OwnFunction, case: Case, tensors: Tensors, found: Truth, want: Truth) -> tuple[float, bool]:
    """Compare outputs of a user's function with the description's.

    Gives the largest difference relative to its row, and whether it is one of float32's size.

    Raises:
        JudgeError: it is larger.
    """
    share, single = 0.0, False
    magnitude, slack = want.magnitude[..., None], want.slack[..., None]
    size = 1 + np.abs(np.where(np.isfinite(want.lse), want.lse, 0))
    compared = (
        ("out", found.out, want.out, magnitude, slack),
        ("lse", found.lse, want.lse, size, want.slack.swapaxes(1, 2)),
    )
    for name, got, true, of, moved in compared:
        exact, rough = _limits(of, moved)
        with np.errstate(invalid="ignore"):
            error = np.where(got == true, 0, np.abs(got - true))  # -inf equals itself
        if (error > rough).any():
            raise _difference(own, case, tensors, name, got, true, error, rough)
        single = single or bool((error > exact).any())
        relative = np.divide(error, of, where=np.broadcast_to(of > 0, error.shape), out=np.zeros_like(error))
        share = max(share, float(relative.max(initial=0)))
    return share, single


def _limits(size: Array, slack: Array) -> tuple[Array, Array]:
    """Give what computing in float64, and in float32, may be off by."""
    return (EXACT + EXACT_SLACK * slack) * size, (SINGLE + SINGLE_SLACK * slack) * size + 2.0**-120


def _difference(
    own: OwnFunction, case: Case, tensors: Tensors, name: str, got: Array, true: Array, error: Array, bound: Array
) -> JudgeError:
    wrong = np.broadcast_to(error > bound, error.shape)
    at = tuple(map(int, np.argwhere(wrong)[0]))
    where = f"{name}{list(at)}"
    what = (
        f"differs from the description: {where} is {_shown(got[at])}, the description gives {_shown(true[at])} "
        f"({int(wrong.sum())} of {wrong.size} elements differ; {case.name})"
    )
    return own.function.wrong(what, _likely(own, case, tensors, got if name == "out" else None))


def _likely(own: OwnFunction, case: Case, tensors: Tensors, out: Array | None) -> str:
    """Say which one change of the description would explain the difference."""
    operator, call = Operator.of(own.spec), case.call
    for name, other in _near(own.spec, operator) if out is not None else ():
        there = truth(other.bind(tensors), call, tensors["Q"], tensors["K"], tensors["V"])
        if (np.abs(out - there.out) <= _limits(there.magnitude[..., None], there.slack[..., None])[1]).all():
            return f"it gives what the description would {name}"
    return "correct one of the two: `qimeng generate` prints the formula and the assumptions of the description"


def _near(spec: AttentionSpec, operator: Operator) -> Iterator[tuple[str, Operator]]:
    """Give operators that differ from a description in one thing, and what that is."""
    for clause in clauses(spec, operator):
        yield f"without this: {clause.name}", clause.weaker
    if operator.condition is None:
        return
    numbers = {e.value for e in expressions(operator.condition) if isinstance(e, s.Num) and isinstance(e.value, int)}
    for number in sorted(numbers):
        for near in (number - 1, number + 1):

            def moved(e: s.Expr, number: int = number, near: int = near) -> s.Expr:
                return s.Num(near) if isinstance(e, s.Num) and e.value == number else e

            changed = replace(operator, condition=map_expressions(operator.condition, moved))
            yield f"with {near} in the place of {number} in its mask", changed
