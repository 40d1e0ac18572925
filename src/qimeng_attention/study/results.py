"""A study as a results file: a row a sample, the summary, and where it comes from, through bench/results.py.

Not here: the numbers (summary.py).
"""

from __future__ import annotations

import datetime
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from qimeng_attention.bench.results import Results, StudyRow
from qimeng_attention.study.kinds import kinds_of
from qimeng_attention.study.record import GATES, Sample
from qimeng_attention.study.statistics import CONFIDENCE
from qimeng_attention.study.summary import by_request, summarise


def results_of(samples: Sequence[Sample], *, name: str = "study", k: int | None = None) -> Results:
    """Make a results file of the samples of one model and one round.

    Raises:
        SpecError: models or rounds are mixed, or a request has fewer than k samples.
    """
    found: dict[str, Any] = summarise(samples, k=k)
    places = sorted({s.judged_on for s in samples if s.judged_on}) or ["unknown"]
    return Results(
        name=name,
        commit=_commit(),
        date=max((s.date for s in samples if s.date), default=datetime.datetime.now(datetime.UTC).date().isoformat()),
        device=", ".join(places),
        driver="",
        packages={"qimeng-attention": version("qimeng-attention"), "python": platform.python_version()},
        command=" ".join(["qimeng", *sys.argv[1:]]),
        rows=[row_of(s) for s in samples],
        summary={
            **found,
            "facts": {
                "model": samples[0].model,
                "round": samples[0].round,
                "estimator": "pass@k of Chen et al. 2021 (arXiv 2107.03374), the mean over requests",
                "interval": f"Wilson, {CONFIDENCE:.0%}, the requests as trials",
                "repairs": "at most 3; a sample that ended without an answer is a failure",
                "by_request": by_request(samples),  # passed before repair, after it, samples
            },
        },
    )


def row_of(sample: Sample) -> StudyRow:
    """Give a sample as a row."""
    asked = [g for g in GATES if any(a.outcome(g) != "not asked" for a in sample.attempts)]
    return StudyRow(
        request=sample.request,
        stratum=sample.stratum,
        method=sample.method,
        sample=sample.sample,
        target=sample.target,
        judged_on=sample.judged_on,
        accepted_before=sample.accepted_before,
        accepted=sample.accepted,
        repairs=sample.repairs,
        gates=[{g: a.outcome(g) for g in asked} for a in sample.attempts],
        codes=[list(a.codes) for a in sample.attempts],
        kinds=[kinds_of(a) for a in sample.attempts],
        causes=[list(a.causes) for a in sample.attempts],
        input_tokens=_whole(sample.total("input_tokens")),
        output_tokens=_whole(sample.total("output_tokens")),
        usd=sample.total("usd"),
        minutes=round(sample.minutes, 3),
        transcript=sample.transcript,
        taken_over=list(sample.taken_over),
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
