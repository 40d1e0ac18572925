"""From a candidate and a spec to a verdict: every case by the rule, every property, every clause of the spec.

The same course for TL interpreted on the CPU and for a kernel in a process of its own; only what runs the
candidate and what computes the reference differ. Not here: operators without a spec (function.py), kernels
on a GPU (device.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Literal, TypeAlias

import numpy as np

from qimeng_attention.judge import rule
from qimeng_attention.judge.candidate import INPUTS, Candidate, Interpreted, Stopped, tiles_of
from qimeng_attention.judge.clauses import Clause, caught, clauses, implied, tells_apart
from qimeng_attention.judge.further import further
from qimeng_attention.judge.inputs import (
    CPU,
    GPU,
    Budget,
    Case,
    cases,
    draw_seed,
    few_heads,
    own_heads,
    values,
)
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.judge.own_function import OwnFunction, blind_rows, compare_own
from qimeng_attention.judge.packed import Packed
from qimeng_attention.judge.properties import PROPERTIES, Outputs, Property, Run, compared, difference
from qimeng_attention.judge.reference import Truth, baseline, truth
from qimeng_attention.judge.threads import one_thread
from qimeng_attention.judge.verdict import Check, ClauseResult, PropertyResult, Verdict
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array, round_to
from qimeng_attention.tl.types import Checked

Progress: TypeAlias = Callable[[int, int, str], None]  # done, total, what comes next
REFERENCE_HAS = 1e-6  # how closely the float64 reference must have a property that is asked of a candidate


@dataclass(frozen=True, slots=True)
class Reference:
    """How truth and baseline are computed."""

    truth: Callable[[Operator, Call, Array, Array, Array], Truth]
    baseline: Callable[[Operator, Call, Array, Array, Array, str], Array]


NUMPY = Reference(truth, baseline)


def judge_program(
    program: Checked | Sequence[Checked],
    spec: AttentionSpec,
    *,
    seed: int = 0,
    budget: Budget = CPU,
    progress: Progress | None = None,
    own: OwnFunction | None = None,
) -> Verdict:
    """Judge checked TL by interpreting it on the CPU.

    Args:
        program: a kernel, or kernels that run in order (as split-KV and its combining kernel do).
        spec: what it must compute.
        seed: entropy of the caller; inputs are drawn from it and the digest of the program.
        budget: how much to try.
        progress: called before each case.
        own: a user's function that agrees with the spec; outputs are compared with it too, and first.

    Raises:
        SpecError: a mask or score that makes no sense.
        JudgeError: the program's tensors, sizes or scalars do not fit the spec.
    """
    kernels = [program] if isinstance(program, Checked) else list(program)
    Operator.of(spec)
    candidate = Interpreted(kernels, spec)
    return judge_candidate(candidate, spec, tiles_of(kernels), seed=seed, budget=budget, progress=progress, own=own)


def judge_candidate(
    candidate: Candidate,
    spec: AttentionSpec,
    tiles: tuple[int, int],
    *,
    seed: int,
    budget: Budget = GPU,
    progress: Progress | None = None,
    reference: Reference = NUMPY,
    where: Literal["cpu", "gpu"] = "cpu",
    own: OwnFunction | None = None,
) -> Verdict:
    """Judge anything that runs; arguments as of `judge_program`."""
    start = time.monotonic()
    if spec.varlen:
        candidate = Packed(candidate, spec, tiles)
    course = _Course(candidate, spec, tiles, draw_seed(candidate.digest, seed), budget, reference, own)
    with one_thread():
        course.settle_heads()
    planned = cases(spec, tiles, course.budget, candidate.numbers)
    total = len(planned) + len(PROPERTIES)
    steps = [(case.name, partial(course.try_case, case)) for case in planned]
    steps += [(prop.name, partial(course.try_property, prop)) for prop in PROPERTIES]
    for done, (name, step) in enumerate(steps):
        if course.hopeless:
            break
        _tell(progress, done, total, name)
        with one_thread():
            step()
    if not course.hopeless:
        with one_thread():
            course.try_harder()
    _tell(progress, total, total, "")
    verdict, reason = course.conclude()
    return Verdict(
        verdict=verdict,
        reason=reason,
        subject=candidate.name,
        where=where,
        digest=candidate.digest,
        entropy=seed,
        seed=course.seed,
        checks=tuple(course.checks),
        properties=tuple(course.properties),
        clauses=tuple(course.clauses),
        reference=own.record() if own is not None else None,
        seconds=round(time.monotonic() - start, 3),
    )


def _tell(progress: Progress | None, done: int, total: int, name: str) -> None:
    if progress is not None:
        progress(done, total, name)


@dataclass
class _Course:
    """One judgement under way."""

    candidate: Candidate
    spec: AttentionSpec
    tiles: tuple[int, int]
    seed: int
    budget: Budget
    reference: Reference
    own: OwnFunction | None = None
    checks: list[Check] = field(default_factory=list)
    properties: list[PropertyResult] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.operator = replace(Operator.of(self.spec), approximated=self.candidate.approximated)
        self.asked = clauses(self.spec, self.operator)
        self.caught_by: dict[str, str] = {}
        self.implied: dict[str, bool] = {}
        self.free_heads = self.candidate.any_heads

    # -------------------------------------------------------------- cases
    def settle_heads(self) -> None:
        """Judge with few heads only a program that is as right with few as with the spec's own."""
        own, few = own_heads(self.spec, self.tiles), few_heads(self.spec, self.tiles, self.budget)
        if own.call == few.call:
            return
        if not self.candidate.any_heads or (self._failed(few) and not self._failed(own)):
            self.budget, self.free_heads = replace(self.budget, heads=None), False

    @property
    def hopeless(self) -> bool:
        """Tell whether enough cases have failed."""
        return len({c.case for c in self.checks if not c.passed}) >= self.budget.failures

    def _failed(self, case: Case) -> bool:
        return not all(c.passed for c in self._compare(case)[0])

    def try_case(self, case: Case) -> None:
        """Compare one case, and see which clauses its inputs would show the lack of."""
        checks, tensors, want, limits = self._compare(case)
        self.checks += checks
        for clause in self.asked:
            if clause.name not in self.caught_by and self._shows(clause, case.call, tensors, want, limits):
                self.caught_by[clause.name] = case.name

    def try_harder(self) -> None:
        """Try further cases while a clause of the mask or a tensor has not shown in any."""
        for case in further(self.spec, self.operator, self.tiles, self.budget):
            weak = [c for c in self.asked if c.mask and c.name not in self.caught_by and not self._implied(c)]
            if not weak:
                return
            if self._may_show(weak, case):
                self.try_case(case)

    def _may_show(self, weak: Sequence[Clause], case: Case) -> bool:
        """Tell whether a clause makes a difference to a case: to the mask, or to the scores of whatever it holds."""
        tensors = values(case, self.operator, self.spec.dtype, self.seed)
        asked = self.operator.bind(tensors)
        return any(c.weaker.score != asked.score or tells_apart(asked, c.weaker.bind(tensors), case.call) for c in weak)

    def _implied(self, clause: Clause) -> bool:
        if clause.name not in self.implied:
            self.implied[clause.name] = implied(clause, self.operator, self.spec)
        return self.implied[clause.name]

    def _shows(self, clause: Clause, call: Call, tensors: Outputs, want: Truth, limits: rule.Limits) -> bool:
        return (
            call.Sq > 0 and call.Sk > 0 and caught(clause, call, tensors, want, limits, self.spec, self.reference.truth)
        )

    def _compare(self, case: Case) -> tuple[list[Check], Outputs, Truth, rule.Limits]:
        tensors = values(case, self.operator, self.spec.dtype, self.seed)
        want, limits = self._yardstick(case.call, tensors)
        try:
            given = self.candidate.run(case.call, tensors, case.layout)
        except Stopped as stop:
            return [Check.of_stop(case.name, stop.reason, stop.diagnostics)], tensors, want, limits
        return (
            self._against_own(case, tensors, want, given)
            + [Check.of(case.name, f) for f in self._compared(given, want, limits)],
            tensors,
            want,
            limits,
        )

    def _compared(self, given: Outputs, want: Truth, limits: rule.Limits) -> list[rule.Finding]:
        found = [rule.compare("Out", given["Out"], want.out, limits)]
        if "LSE" in self.spec.outputs:
            found.append(rule.compare("Lse", given["Lse"], want.lse, rule.lse_limits(want)))
        return found

    def _against_own(self, case: Case, tensors: Outputs, want: Truth, given: Outputs) -> list[Check]:
        """Compare a case with the user's function, within what the rule allows around its outputs."""
        if self.own is None or not self.own.fits(case.call):
            return []
        operator = self.operator.bind(tensors)
        own = self.own.expected(case.call, tensors, want, blind_rows(operator, case.call), case.name)
        compare_own(self.own, case, tensors, own, want)  # lengths that nobody tried before may tell them apart
        q, k, v = (tensors[n] for n in ("Q", "K", "V"))
        plain = self.reference.baseline(operator, case.call, q, k, v, self.spec.dtype)
        limits = rule.out_limits(own, plain, self.spec.dtype)
        name = f"{case.name}, against {self.own.name}"
        return [Check.of(name, f) for f in self._compared(given, own, limits)]

    def _yardstick(self, call: Call, tensors: Outputs) -> tuple[Truth, rule.Limits]:
        q, k, v = (tensors[n] for n in ("Q", "K", "V"))
        operator = self.operator.bind(tensors)
        want = self.reference.truth(operator, call, q, k, v)
        plain = self.reference.baseline(operator, call, q, k, v, self.spec.dtype)
        return want, rule.out_limits(want, plain, self.spec.dtype)

    # -------------------------------------------------------------- properties
    def try_property(self, prop: Property) -> None:
        """Ask a property of the candidate, if the reference has it for a call of this spec."""
        keys = 2 * self.tiles[1] + 3
        for rows in (min(33, self.tiles[0]), 1, keys):
            call = few_heads(self.spec, self.tiles, self.budget, (2, rows, keys)).call
            runs = [self._rounded(r) for r in prop.runs(np.random.default_rng(self.seed), call, self.operator)]
            if not runs or not all(self._allowed(r.call) for r in runs):
                continue
            true = [self._yardstick(r.call, r.tensors) for r in runs]
            pairs = prop.pairs(runs, [{"Out": t.out, "Lse": t.lse} for t, _ in true], self.operator)
            if compared(pairs) and difference(pairs) <= REFERENCE_HAS:
                bound = 0.0 if prop.exact else sum(float(limits.element.max(initial=0)) for _, limits in true)
                self.properties.append(self._ask(prop, runs, bound))
                return
        self.properties.append(PropertyResult(name=prop.name, applies=False, passed=True))

    def _ask(self, prop: Property, runs: list[Run], bound: float) -> PropertyResult:
        try:
            outputs = [self._named(self.candidate.run(r.call, r.tensors, "contiguous")) for r in runs]
        except Stopped as stop:
            return PropertyResult(name=prop.name, applies=True, passed=False, reason=stop.reason)
        error = difference(prop.pairs(runs, outputs, self.operator))
        passed = error <= bound
        reason = "" if passed else f"off by {error:.3g}, allowed {bound:.3g}"
        return PropertyResult(
            name=prop.name, applies=True, passed=passed, worst_error=error, bound=bound, reason=reason
        )

    def _named(self, given: Outputs) -> Outputs:
        return {n: given[n] for n in ("Out", *(["Lse"] if "LSE" in self.spec.outputs else []))}

    def _rounded(self, run: Run) -> Run:
        rounded = {n: round_to(run.tensors[n], self.spec.dtype) for n in INPUTS}
        return Run(run.call, self.operator.drawn(run.call) | run.tensors | rounded)

    def _allowed(self, call: Call) -> bool:
        """Tell whether spec and candidate admit a call."""
        fixed = ((self.spec.B, call.B), (self.spec.Sq, call.Sq), (self.spec.Sk, call.Sk))
        heads = (call.Hq, call.Hk) == (self.spec.Hq, self.spec.Hk) or self.free_heads
        return all(asked is None or asked == found for asked, found in fixed) and heads

    # -------------------------------------------------------------- the end
    @cached_property
    def clauses(self) -> list[ClauseResult]:
        """Tell for each clause which case would show its lack; nothing where cases were left out."""
        if self.hopeless:
            return []
        return [
            ClauseResult(
                name=c.name,
                caught_by=self.caught_by.get(c.name),
                implied=c.name not in self.caught_by and self._implied(c),
            )
            for c in self.asked
        ]

    def conclude(self) -> tuple[Literal["accepted", "rejected", "inconclusive"], str]:
        """Reject what failed anywhere; accept only where the inputs were strong enough to reject."""
        failed = [c for c in self.checks if not c.passed]
        broken = [p for p in self.properties if not p.passed]
        if failed:
            rest = ", the rest was left out" if self.hopeless else ""
            count = f"{len(failed)} of {len(self.checks)} checks failed{rest}"
            return "rejected", f"{failed[0].case}: {failed[0].reason} ({count})"
        if broken:
            return "rejected", f"{broken[0].name}: {broken[0].reason}"
        weak = [c.name for c in self.clauses if c.caught_by is None and not c.implied]
        if weak:
            return "inconclusive", f"inputs too weak: no case shows the lack of {'; '.join(weak)}"
        return "accepted", f"{len(self.checks)} checks, {sum(p.applies for p in self.properties)} properties"
