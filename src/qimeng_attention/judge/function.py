"""Judging an operator that no `AttentionSpec` describes, against a NumPy function that a person wrote.

How much the function's outputs move when its inputs are rounded once more stands for the same-precision
baseline of the rule. Each input must matter in some case, or the verdict is inconclusive.

Not here: running the candidate (plain.py, plain_bundle.py), calling the function (user_function.py), values and
sizes (plain_families.py), operators with a spec (judge.py).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import rule
from qimeng_attention.judge.candidate import Stopped
from qimeng_attention.judge.inputs import draw_seed
from qimeng_attention.judge.judge import Progress
from qimeng_attention.judge.plain import Plain, Program
from qimeng_attention.judge.plain_families import FAMILIES
from qimeng_attention.judge.reference_process import Place, Reference, open_reference
from qimeng_attention.judge.threads import one_thread
from qimeng_attention.judge.user_function import MAGNITUDE, Asked
from qimeng_attention.judge.verdict import Check, ClauseResult, Verdict
from qimeng_attention.tl.numerics import FLOAT_TYPES, INTEGER_TYPES, Array, round_to, unit_roundoff
from qimeng_attention.tl.types import Checked

DRAWS = 4  # roundings of the inputs that stand for the baseline


def judge_function(
    program: Checked | Sequence[Checked],
    reference: Place | Reference,
    *,
    seed: int = 0,
    sizes: Sequence[Mapping[str, int]] | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge checked TL against a reference function, by interpreting it on the CPU.

    Args:
        program: a kernel, or kernels that run in order.
        reference: as user_function.py describes it; a function, its place in a file, or one that is open already.
        seed: entropy of the caller.
        sizes: values of the run-time sizes to try; by default lengths around the tiles.
        progress: called before each case.

    Raises:
        JudgeError: something the function does wrong.
    """
    kernels = (program,) if isinstance(program, Checked) else tuple(program)
    return judge_plain(Program(kernels), reference, seed=seed, sizes=sizes, progress=progress)


def judge_plain(
    candidate: Plain,
    reference: Place | Reference,
    *,
    seed: int = 0,
    sizes: Sequence[Mapping[str, int]] | None = None,
    progress: Progress | None = None,
) -> Verdict:
    """Judge anything that runs; arguments as of `judge_function`."""
    start = time.monotonic()
    if not isinstance(reference, Reference):
        with open_reference(reference) as opened:
            return judge_plain(candidate, opened, seed=seed, sizes=sizes, progress=progress)
    trial = _Trial(candidate, Asked(reference), draw_seed(candidate.digest, seed))
    planned = [(dict(s), family) for s in sizes or candidate.sizes_to_try() for family in FAMILIES]
    for done, (chosen, family) in enumerate(planned):
        if trial.hopeless:
            break
        if progress is not None:
            progress(done, len(planned), _name(chosen, family))
        with one_thread():
            trial.try_case(done, chosen, family)
    if progress is not None:
        progress(len(planned), len(planned), "")
    verdict, reason = trial.conclude()
    return Verdict(
        verdict=verdict,
        reason=reason,
        subject=candidate.name,
        where=candidate.where,
        digest=candidate.digest,
        entropy=seed,
        seed=trial.seed,
        checks=tuple(trial.checks),
        clauses=tuple(trial.clauses()),
        seconds=round(time.monotonic() - start, 3),
    )


def _name(sizes: Mapping[str, int], family: str) -> str:
    return f"{family}, " + " ".join(f"{k}={v}" for k, v in sizes.items())


# ------------------------------------------------------------------ the judgement


@dataclass
class _Trial:
    candidate: Plain
    asked: Asked
    seed: int
    checks: list[Check] = field(default_factory=list)
    matters: dict[str, str] = field(default_factory=dict)  # input: the case in which it changes an output

    def __post_init__(self) -> None:
        self.types = {**self.candidate.inputs, **self.candidate.outputs}

    @property
    def hopeless(self) -> bool:
        """Tell whether enough cases have failed."""
        failed = len({c.case for c in self.checks if not c.passed})
        return self.candidate.failures is not None and failed >= self.candidate.failures

    def try_case(self, number: int, sizes: Mapping[str, int], family: str) -> None:
        """Compare one case with the reference."""
        place = _name(sizes, family)
        digest = np.random.default_rng([self.seed, number])
        shapes, types = self.candidate.shapes(sizes), self.candidate.inputs
        drawn = {n: FAMILIES[family](digest, n, shapes[n], dtype) for n, dtype in types.items()}
        tensors = {n: round_to(a, types[n]) for n, a in drawn.items()}
        scalars = self.candidate.scalars(digest, sizes)
        given = self._given(tensors, sizes, scalars)
        wanted = {n: shapes[n] for n in self.candidate.outputs}
        want = self.asked.call(given, wanted, place)
        if any(not np.array_equal(a, want[n]) for n, a in self.asked.call(given, wanted, place).items()):
            raise JudgeError(
                f"{self.asked.name} gives other numbers when it is called again ({place})",
                hint="let it draw nothing at random and keep no state",
                field="reference",
            )
        limits = self._limits(digest, given, want, wanted, place)
        self.checks += self._compared(number, sizes, scalars, tensors, want, limits, place)
        self._probe(digest, given, want, wanted, limits, place)

    def _given(
        self, tensors: Mapping[str, Array], sizes: Mapping[str, int], scalars: Mapping[str, float]
    ) -> dict[str, Any]:
        arrays = {n: a if self.types[n] in INTEGER_TYPES else a.astype(np.float64) for n, a in tensors.items()}
        return {**self.candidate.fixed, **sizes, **scalars, **arrays}

    def _limits(
        self,
        random: np.random.Generator,
        given: dict[str, Any],
        want: dict[str, Array],
        wanted: dict[str, tuple[int, ...]],
        place: str,
    ) -> dict[str, rule.Limits]:
        """Round the inputs once more, several times, and see how far the outputs move."""
        u = unit_roundoff(self.candidate.narrowest)
        moved: dict[str, list[Array]] = {n: [] for n in wanted}
        for _ in range(DRAWS):
            signs = {n: random.choice([-1.0, 1.0], a.shape) for n, a in given.items() if _is_real(a)}
            other = self.asked.call(
                {n: a * (1 + u * signs[n]) if n in signs else a for n, a in given.items()}, wanted, place
            )
            for n in wanted:
                with np.errstate(invalid="ignore"):
                    moved[n].append(np.where(other[n] == want[n], 0, other[n] - want[n]))
        return {
            n: rule.sampled_limits(
                want[n],
                np.nan_to_num(np.array(moved[n])),
                want.get(n + MAGNITUDE),
                self.types[n],
                self.candidate.narrowest,
            )
            for n in wanted
        }

    def _compared(
        self,
        number: int,
        sizes: Mapping[str, int],
        scalars: Mapping[str, float],
        tensors: Mapping[str, Array],
        want: Mapping[str, Array],
        limits: Mapping[str, rule.Limits],
        place: str,
    ) -> list[Check]:
        try:
            outputs = self.candidate.run(number, sizes, tensors, scalars)
        except Stopped as stop:
            return [Check.of_stop(place, stop.reason, stop.diagnostics)]
        return [Check.of(place, rule.compare(n, outputs[n], want[n], limits[n])) for n in limits]

    def _probe(
        self,
        random: np.random.Generator,
        given: dict[str, Any],
        want: dict[str, Array],
        wanted: dict[str, tuple[int, ...]],
        limits: dict[str, rule.Limits],
        place: str,
    ) -> None:
        """See which inputs change an output by more than the rule allows."""
        for name in self.candidate.inputs:
            if name in self.matters or not _is_real(given[name]) or not given[name].size:
                continue
            other = self.asked.call(
                {**given, name: random.permutation(given[name].ravel()).reshape(given[name].shape)},
                wanted,
                place,
            )
            if any(not rule.compare(n, other[n], want[n], limits[n]).passed for n in wanted):
                self.matters[name] = place

    def clauses(self) -> list[ClauseResult]:
        """Tell for each input in which case it matters; nothing where cases were left out."""
        if self.hopeless:
            return []
        real = [n for n in self.candidate.inputs if self.types[n] in FLOAT_TYPES]
        return [ClauseResult(name=f"the outputs depend on {n}", caught_by=self.matters.get(n)) for n in real]

    def conclude(self) -> tuple[Literal["accepted", "rejected", "inconclusive"], str]:
        """Accept only what passed every check on inputs that all matter."""
        failed = [c for c in self.checks if not c.passed]
        if failed:
            rest = ", the rest was left out" if self.hopeless else ""
            count = f"{len(failed)} of {len(self.checks)} checks failed{rest}"
            return "rejected", f"{failed[0].case}: {failed[0].reason} ({count})"
        idle = [c.name for c in self.clauses() if c.caught_by is None]
        if idle:
            return "inconclusive", f"inputs too weak: no case shows that {'; '.join(idle)}"
        return "accepted", f"{len(self.checks)} checks against {self.asked.name}"


def _is_real(value: Any) -> bool:
    return isinstance(value, np.ndarray) and np.issubdtype(value.dtype, np.floating)
