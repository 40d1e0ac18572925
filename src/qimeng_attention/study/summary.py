"""What the samples of a study say together: method by method, stratum by stratum. No sample is left out.

    summary["two-stage"]["unseen"]["pass1"]      # after repair; pass1_before, passk with k named, repairs_median ...

A sample counts as passed only where the judge accepted it: one that ended without an answer, or that no gate has seen
to the end, is a failure in every number.

Not here: the estimates (statistics.py), pictures (plots.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

from qimeng_attention.errors import SpecError
from qimeng_attention.study.kinds import CAUSES, kinds_of
from qimeng_attention.study.record import GATES, METHODS, MOST_REPAIRS, Sample
from qimeng_attention.study.statistics import Estimate, mean_pass_at_k

STRATA = ("known", "unseen")


def summarise(samples: Sequence[Sample], *, k: int | None = None) -> dict[str, dict[str, dict[str, Any]]]:
    """Give the numbers of each method and stratum that has samples.

    Args:
        samples: of one model, and of one round.
        k: of pass@k; by default the least number of samples that a request of the cell has.

    Raises:
        SpecError: there are no samples, models or rounds are mixed, or a request has fewer than k samples.
    """
    _refuse_mixtures(samples)
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for method in METHODS:
        for stratum in STRATA:
            cell = [s for s in samples if (s.method, s.stratum) == (method, stratum)]
            if cell:
                found.setdefault(method, {})[stratum] = cell_of(cell, k)
    return found


def choose(samples: Sequence[Sample], *, model: str | None = None, round_: int | None = None) -> list[Sample]:
    """Keep the samples of a model and a round.

    Raises:
        SpecError: there are none.
    """
    found = [s for s in samples if model in (None, s.model) and round_ in (None, s.round)]
    if not found:
        models = ", ".join(sorted({s.model for s in samples})) or "none"
        rounds = ", ".join(map(str, sorted({s.round for s in samples}))) or "none"
        raise SpecError(
            "no sample is of that model and round", hint=f"models: {models}; rounds: {rounds}", field="model"
        )
    return found


def cell_of(samples: Sequence[Sample], k: int | None = None) -> dict[str, Any]:
    """Give the numbers of the samples of one method and stratum.

    Raises:
        SpecError: a request has fewer than k samples.
    """
    by_request = _by_request(samples)
    least = min(len(found) for found in by_request.values())
    if k is not None and k > least:
        few = ", ".join(r for r, found in by_request.items() if len(found) < k)
        raise SpecError(f"pass@{k} needs {k} samples of each request", hint=f"fewer are of: {few}", field="k", value=k)
    chosen = k or least
    after, after_k = (_estimate(by_request, n, lambda s: s.accepted) for n in (1, chosen))
    before = _estimate(by_request, 1, lambda s: s.accepted_before)
    before_k = _estimate(by_request, chosen, lambda s: s.accepted_before)
    return {
        "pass1": round(after.value, 4),
        "pass1_interval": _interval(after),
        "passk": round(after_k.value, 4),
        "passk_interval": _interval(after_k),
        "k": chosen,
        "pass1_before": round(before.value, 4),
        "pass1_before_interval": _interval(before),
        "passk_before": round(before_k.value, 4),
        "repairs_median": median(s.repairs for s in samples),
        "requests": len(by_request),
        "n": len(samples),
        "accepted": sum(s.accepted for s in samples),
        "gates": gates_of(samples),
        "kinds": dict(kinds(samples)),
        "kinds_left": dict(kinds(samples, left=True)),
        "causes": dict(causes(samples)),
        **costs_of(samples),
    }


def gates_of(samples: Sequence[Sample]) -> list[dict[str, dict[str, int]]]:
    """Count for each number of repairs, from none up, how many samples pass each gate, and how many are asked to.

    A sample that needed fewer repairs stands with its last attempt.
    """
    asked = [g for g in GATES if any(a.outcome(g) != "not asked" for s in samples for a in s.attempts)]
    found = []
    for repairs in range(1 + MOST_REPAIRS):
        attempts = [s.after(repairs) for s in samples]
        passed: dict[str, int] = {g: sum(a.outcome(g) == "passed" for a in attempts) for g in asked}
        found.append({g: {"passed": n, "of": len(attempts)} for g, n in passed.items()})
    return found


def kinds(samples: Sequence[Sample], *, left: bool = False) -> Counter[str]:
    """Count the kinds of failure, each once an attempt; with `left`, only of what failed in the end."""
    attempts = [a for s in samples for a in ([s.attempts[-1]] if left else s.attempts)]
    return _by_number(Counter(kind for a in attempts for kind in kinds_of(a)))


def causes(samples: Sequence[Sample]) -> Counter[str]:
    """Count the causes that readers named, each once an attempt."""
    named = [c for s in samples for a in s.attempts for c in dict.fromkeys(a.causes)]
    return _by_number(Counter(c if c in CAUSES else f"other: {c}" for c in named))


def costs_of(samples: Sequence[Sample]) -> dict[str, Any]:
    """Add up tokens, minutes and money; what is unknown is counted, not taken for nothing."""
    found: dict[str, Any] = {}
    for field in ("input_tokens", "output_tokens", "usd"):
        values = [s.total(field) for s in samples]
        known = [v for v in values if v is not None]
        found[field] = round(sum(known), 6) if known else None
        found[f"{field}_unknown"] = len(values) - len(known)
    found["minutes"] = round(sum(s.minutes for s in samples), 2)
    found["minutes_median"] = round(median(s.minutes for s in samples), 3)
    return found


def by_request(samples: Sequence[Sample]) -> dict[str, dict[str, list[int]]]:
    """Give for each request and method the samples that passed before repair, after it, and all."""
    found: dict[str, dict[str, list[int]]] = {}
    for s in samples:
        counts = found.setdefault(s.request, {}).setdefault(s.method, [0, 0, 0])
        for place, passed in enumerate((s.accepted_before, s.accepted, True)):
            counts[place] += passed
    return {r: found[r] for r in sorted(found)}


def _refuse_mixtures(samples: Sequence[Sample]) -> None:
    if not samples:
        raise SpecError("there are no samples to summarise", hint="name files that `record` wrote", field="samples")
    for field, option in (("model", "--model"), ("round", "--round")):
        different = sorted({str(getattr(s, field)) for s in samples})
        if len(different) > 1:
            message = f"the samples are of more than one {field}: {', '.join(different)}"
            raise SpecError(message, hint=f"choose one with {option}", field=field, allowed=different)
    strata: dict[str, set[str]] = {}
    for s in samples:
        strata.setdefault(s.request, set()).add(s.stratum)
    if mixed := [r for r, found in strata.items() if len(found) > 1]:
        raise SpecError(f"{', '.join(mixed)} is both known and unseen", hint="mend the samples", field="stratum")


def _by_request(samples: Sequence[Sample]) -> dict[str, list[Sample]]:
    found: dict[str, list[Sample]] = {}
    for s in samples:
        found.setdefault(s.request, []).append(s)
    return found


def _estimate(requests: dict[str, list[Sample]], k: int, passed: Callable[[Sample], bool]) -> Estimate:
    return mean_pass_at_k([(len(found), sum(map(passed, found))) for found in requests.values()], k)


def _interval(found: Estimate) -> list[float]:
    return [round(found.low, 4), round(found.high, 4)]


def _by_number(counts: Counter[str]) -> Counter[str]:
    return Counter(dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))))
