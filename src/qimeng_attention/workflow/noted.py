"""What a run adds to its transcript beside what was said: what was understood, what came of each answer, the outcome.

Not here: transcripts (llm/transcript.py), showing them (report/run_page.py).
"""

from __future__ import annotations

from qimeng_attention.author.llm.understanding import Understood
from qimeng_attention.llm.transcript import Transcript
from qimeng_attention.workflow.attempts import Attempt
from qimeng_attention.workflow.modelled import Made

UNDERSTOOD, ATTEMPT, OUTCOME = "understood", "attempt", "outcome"


class Noted:
    """Writes each thing once, however often the run is begun again."""

    def __init__(self, transcript: Transcript) -> None:
        self._transcript = transcript

    def understood(self, found: Understood, target: str) -> None:
        """Keep what the request was taken to mean."""
        spec = found.spec.model_dump(mode="json", exclude_defaults=True)
        beyond, meaning = found.beyond, found.meaning
        self._transcript.note_once(UNDERSTOOD, target=target, spec=spec, beyond=beyond, meaning=meaning, why=found.why)

    def attempt(self, sample: int, attempt: Attempt) -> None:
        """Keep how far an answer came."""
        self._transcript.note_once(
            ATTEMPT,
            seconds=attempt.seconds,
            sample=sample,
            stage=attempt.stage,
            passed=list(attempt.passed),
            failed=attempt.failed,
            codes=list(attempt.codes),
            findings=attempt.findings,
            plain_schedule=attempt.plain_schedule,
        )

    def outcome(self, made: Made) -> None:
        """Keep what the run gave."""
        best, outcome = made.best, made.outcome
        verdict = best.verdict if best is not None else None
        self._transcript.note_once(
            OUTCOME,
            samples=[{"solved": s.solved, "repairs": s.repairs} for s in made.samples],
            kept=made.samples.index(best) if best is not None else None,
            bundle=str(outcome.folder) if outcome is not None and outcome.folder else None,
            verdict=verdict.verdict if verdict is not None else None,
        )
