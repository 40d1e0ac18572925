"""Judging an operator that no `AttentionSpec` describes, against a NumPy function that a person wrote.

    def attention(Q, K, V, scale):     # arrays by tensor name, sizes and scalars by theirs: those it asks for
        ...
        return {"Out": out}            # outputs by name; a single output may come alone

The function gets float64 arrays. It is called twice and must give the same numbers, leave its inputs alone, and give
no NaN; what it does wrong is a JudgeError that names it. How much its outputs move when its inputs are rounded once
more stands for the same-precision baseline of the rule.

Not here: operators with a spec (judge.py).
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import rule
from qimeng_attention.judge.candidate import Stopped, digest_of, run_kernels
from qimeng_attention.judge.inputs import draw_seed
from qimeng_attention.judge.judge import Progress
from qimeng_attention.judge.plain_families import FAMILIES, scalar_values, sizes_to_try
from qimeng_attention.judge.verdict import Check, ClauseResult, Verdict
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.numerics import FLOAT_TYPES, INTEGER_TYPES, Array, round_to, unit_roundoff
from qimeng_attention.tl.types import Checked, TensorType

Function: TypeAlias = Callable[..., Any]
DRAWS = 4  # roundings of the inputs that stand for the baseline
MAGNITUDE = "_magnitude"  # `Out_magnitude` beside `Out`: the sum of |terms| of each element, if the function knows it


def load_function(place: str) -> Function:
    """Load `FILE.py:FUNCTION`.

    Raises:
        JudgeError: no such file or function, or the file fails when it is run.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier() or not path.is_file():
        raise JudgeError(f"{place!r} names no function in a file", hint="write it as FILE.py:FUNCTION", field="reference")
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise JudgeError(f"{file} is no Python file", hint="write it as FILE.py:FUNCTION", field="reference")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # anything may go wrong in a person's file
        raise JudgeError(f"{file} fails when it is loaded: {_told(error)}", hint="run it with python first", field="reference") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, f in vars(module).items() if inspect.isfunction(f)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"functions there: {', '.join(known) or 'none'}"
        raise JudgeError(f"{file} has no function {name}", hint=hint, field="reference")
    return function  # type: ignore[no-any-return]


def judge_function(program: Checked | Sequence[Checked], reference: Function, *, seed: int = 0,
                   sizes: Sequence[Mapping[str, int]] | None = None, progress: Progress | None = None) -> Verdict:  # fmt: skip
    """Judge checked TL against a reference function, by interpreting it on the CPU.

    Args:
        program: a kernel, or kernels that run in order.
        reference: see the module's first lines.
        seed: entropy of the caller.
        sizes: values of the run-time sizes to try; by default lengths around the tiles.
        progress: called before each case.

    Raises:
        JudgeError: something the function does wrong.
    """
    start = time.monotonic()
    kernels = (program,) if isinstance(program, Checked) else tuple(program)
    digest = digest_of(kernels)
    trial = _Trial(kernels, _Asked(reference), draw_seed(digest, seed))
    planned = [(dict(s), family) for s in sizes or sizes_to_try(kernels) for family in FAMILIES]
    for done, (chosen, family) in enumerate(planned):
        if progress is not None:
            progress(done, len(planned), _name(chosen, family))
        trial.try_case(done, chosen, family)
    if progress is not None:
        progress(len(planned), len(planned), "")
    verdict, reason = trial.conclude()
    return Verdict(
        verdict=verdict, reason=reason, subject=kernels[0].kernel.name, where="cpu", digest=digest, entropy=seed,
        seed=trial.seed, checks=tuple(trial.checks), clauses=tuple(trial.clauses()),
        seconds=round(time.monotonic() - start, 3),
    )  # fmt: skip


def _name(sizes: Mapping[str, int], family: str) -> str:
    return f"{family}, " + " ".join(f"{k}={v}" for k, v in sizes.items())


# ------------------------------------------------------------------ the person's function


@dataclass
class _Asked:
    """A reference function, and what it asks for."""

    function: Function

    def __post_init__(self) -> None:
        self.name = getattr(self.function, "__name__", "the reference")
        try:
            self.parameters = dict(inspect.signature(self.function).parameters)
        except (TypeError, ValueError):
            raise JudgeError(f"{self.name} is no function with a signature", hint="give a plain Python function") from None
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def call(self, given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, Array]:
        """Call the function on copies of what it asks for, and check what it gives.

        Raises:
            JudgeError: it raises, changes its inputs, or gives something that is no set of outputs.
        """
        arguments = {n: np.array(given[n]) if isinstance(given[n], np.ndarray) else given[n] for n in self._wanted(given)}
        try:
            with np.errstate(all="ignore"):
                result = self.function(**arguments)
        except Exception as error:  # anything may go wrong in a person's function
            raise self._wrong(f"raises {_told(error)}", place, "let it handle these sizes, or judge on others") from error
        for name, value in arguments.items():
            if isinstance(value, np.ndarray) and not np.array_equal(value, given[name], equal_nan=True):
                raise self._wrong(f"changes its input {name}", place, "let it work on a copy")
        return self._outputs(result, shapes, place)

    def _wanted(self, given: Mapping[str, Any]) -> list[str]:
        if self.takes_all:
            return list(given)
        wanted = []
        for name, p in self.parameters.items():
            if name in given:
                wanted.append(name)
            elif p.default is p.empty:
                near = difflib.get_close_matches(name, given, n=1, cutoff=0.4)
                raise JudgeError(f"{self.name} asks for {name}, which the program does not have",
                                 hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(given)}")  # fmt: skip
        return wanted

    def _outputs(self, result: Any, shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, Array]:
        if not isinstance(result, Mapping):
            if len(shapes) > 1:
                raise self._wrong(f"gives {type(result).__name__}, expected outputs by name", place,
                                  "return {" + ", ".join(f"'{n}': ..." for n in shapes) + "}")  # fmt: skip
            result = {next(iter(shapes)): result}
        found: dict[str, Array] = {}
        for name, shape in shapes.items():
            if name not in result:
                raise self._wrong(f"gives no {name}", place, f"it gives {', '.join(map(str, result)) or 'nothing'}")
            found[name] = self._array(name, result[name], shape, place)
            if name + MAGNITUDE in result:
                found[name + MAGNITUDE] = self._array(name + MAGNITUDE, result[name + MAGNITUDE], shape, place)
        return found

    def _array(self, name: str, value: Any, shape: tuple[int, ...], place: str) -> Array:
        try:
            array = np.array(value, np.float64)
        except (TypeError, ValueError):
            raise self._wrong(f"gives {name} as {type(value).__name__}, expected an array", place, "return NumPy arrays") from None
        if array.shape != shape:
            raise self._wrong(f"gives {name} of shape {array.shape}, expected {shape}", place, "compare it with the program's Allocate")
        if np.isnan(array).any():
            at = [int(i) for i in np.argwhere(np.isnan(array))[0]]
            raise self._wrong(f"gives NaN at {name}{at}", place, "say what the operator gives there, 0 for a row without a key")
        return array

    def _wrong(self, what: str, place: str, hint: str) -> JudgeError:
        return JudgeError(f"{self.name} {what} ({place})", hint=hint, field="reference")


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


# ------------------------------------------------------------------ the judgement


@dataclass
class _Trial:
    kernels: tuple[Checked, ...]
    asked: _Asked
    seed: int
    checks: list[Check] = field(default_factory=list)
    matters: dict[str, str] = field(default_factory=dict)  # input: the case in which it changes an output

    def __post_init__(self) -> None:
        made = [n for k in self.kernels for n in k.outputs]
        read = {n for k in self.kernels for n in k.inputs}
        self.tensors = {n: t for k in self.kernels for n, t in k.tensors.items()}
        self.inputs = [n for n in dict.fromkeys(n for k in self.kernels for n in k.inputs) if n not in made]
        self.outputs = [n for n in dict.fromkeys(made) if n not in read or len(self.kernels) == 1]
        types = [t.dtype for n, t in self.tensors.items() if t.dtype in FLOAT_TYPES]
        types += [t.dtype for k in self.kernels for t in k.tiles.values() if t.dtype in FLOAT_TYPES]
        self.narrowest = max(types, key=unit_roundoff, default="f32")

    def try_case(self, number: int, sizes: Mapping[str, int], family: str) -> None:
        """Compare one case with the reference."""
        place = _name(sizes, family)
        digest = np.random.default_rng([self.seed, number])
        known = {**self.kernels[0].fixed, **sizes}
        shapes = {n: _shape(t, known) for n, t in self.tensors.items()}
        drawn = {n: FAMILIES[family](digest, n, shapes[n], self.tensors[n].dtype) for n in self.inputs}
        tensors = {n: round_to(a, self.tensors[n].dtype) for n, a in drawn.items()}
        scalars = scalar_values(digest, self.kernels, sizes)
        given = self._given(tensors, sizes, scalars)
        wanted = {n: shapes[n] for n in self.outputs}
        want = self.asked.call(given, wanted, place)
        if any(not np.array_equal(a, want[n]) for n, a in self.asked.call(given, wanted, place).items()):
            raise JudgeError(f"{self.asked.name} gives other numbers when it is called again ({place})",
                             hint="let it draw nothing at random and keep no state", field="reference")  # fmt: skip
        limits = self._limits(digest, given, want, wanted, place)
        self.checks += self._compared(number, sizes, scalars, tensors, want, limits, place)
        self._probe(digest, given, want, wanted, limits, place)

    def _given(self, tensors: Mapping[str, Array], sizes: Mapping[str, int], scalars: Mapping[str, float]) -> dict[str, Any]:
        arrays = {n: a if self.tensors[n].dtype in INTEGER_TYPES else a.astype(np.float64) for n, a in tensors.items()}
        return {**self.kernels[0].fixed, **sizes, **scalars, **arrays}

    def _limits(self, random: np.random.Generator, given: dict[str, Any], want: dict[str, Array],
                wanted: dict[str, tuple[int, ...]], place: str) -> dict[str, rule.Limits]:  # fmt: skip
        """Round the inputs once more, several times, and see how far the outputs move."""
        u = unit_roundoff(self.narrowest)
        moved: dict[str, list[Array]] = {n: [] for n in wanted}
        for _ in range(DRAWS):
            signs = {n: random.choice([-1.0, 1.0], a.shape) for n, a in given.items() if _is_real(a)}
            other = self.asked.call({n: a * (1 + u * signs[n]) if n in signs else a for n, a in given.items()}, wanted, place)
            for n in wanted:
                with np.errstate(invalid="ignore"):
                    moved[n].append(np.where(other[n] == want[n], 0, other[n] - want[n]))
        return {n: rule.sampled_limits(want[n], np.nan_to_num(np.array(moved[n])), want.get(n + MAGNITUDE), self.tensors[n].dtype, self.narrowest)
                for n in wanted}  # fmt: skip

    def _compared(self, number: int, sizes: Mapping[str, int], scalars: Mapping[str, float], tensors: Mapping[str, Array],
                  want: Mapping[str, Array], limits: Mapping[str, rule.Limits], place: str) -> list[Check]:  # fmt: skip
        try:
            outputs = run_kernels(self.kernels, sizes, tensors, scalars, number)
        except Stopped as stop:
            inf = float("inf")
            return [Check(case=place, output="", passed=False, worst_error=inf, bound=0.0, mean_error=inf, mean_bound=0.0,
                          reason=stop.reason, diagnostics=stop.diagnostics)]  # fmt: skip
        found = [rule.compare(n, outputs[n], want[n], limits[n]) for n in limits]
        return [Check(case=place, **{k: getattr(f, k) for k in f.__slots__}) for f in found]

    def _probe(self, random: np.random.Generator, given: dict[str, Any], want: dict[str, Array],
               wanted: dict[str, tuple[int, ...]], limits: dict[str, rule.Limits], place: str) -> None:  # fmt: skip
        """See which inputs change an output by more than the rule allows."""
        for name in [n for n in self.inputs if n not in self.matters and _is_real(given[n]) and given[n].size]:
            other = self.asked.call({**given, name: random.permutation(given[name].ravel()).reshape(given[name].shape)}, wanted, place)
            if any(not rule.compare(n, other[n], want[n], limits[n]).passed for n in wanted):
                self.matters[name] = place

    def clauses(self) -> list[ClauseResult]:
        """Tell for each input in which case it matters."""
        real = [n for n in self.inputs if self.tensors[n].dtype in FLOAT_TYPES]
        return [ClauseResult(name=f"the outputs depend on {n}", caught_by=self.matters.get(n)) for n in real]

    def conclude(self) -> tuple[Literal["accepted", "rejected", "inconclusive"], str]:
        """Accept only what passed every check on inputs that all matter."""
        failed = [c for c in self.checks if not c.passed]
        if failed:
            return "rejected", f"{failed[0].case}: {failed[0].reason} ({len(failed)} of {len(self.checks)} checks failed)"
        idle = [c.name for c in self.clauses() if c.caught_by is None]
        if idle:
            return "inconclusive", f"inputs too weak: no case shows that {'; '.join(idle)}"
        return "accepted", f"{len(self.checks)} checks against {self.asked.name}"


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)


def _shape(tensor: TensorType, sizes: Mapping[str, int]) -> tuple[int, ...]:
    try:
        return tuple(integer(d, dict(sizes)) for d in tensor.dims)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise JudgeError(f"{tensor.name} has no shape for {dict(sizes)}: {error}", hint="give sizes for which it has one") from None
