"""Answers from transcripts: the same conversation and sample gets the same answer, without a network or a key.

A fault that ended a recorded conversation (truncated, refused) is told again too.

Not here: writing transcripts (recorded.py).
"""

from __future__ import annotations

from pathlib import Path

from qimeng_attention.llm.chat import ClientFault, NoRecording, Reply, Request, Usage
from qimeng_attention.llm.transcript import SUFFIX, Call, Record, TranscriptError, load

MOST_LISTED = 10


class ReplayClient:
    """A transcript, or a folder of them."""

    name = "replay"

    def __init__(self, source: Path) -> None:
        """Read the transcripts.

        Raises:
            TranscriptError: there are none, or one of them makes no sense.
        """
        if not source.exists():
            raise TranscriptError(f"there is no {source}", hint="name a transcript, or a folder of them")
        files = sorted(source.rglob(f"*{SUFFIX}")) if source.is_dir() else [source]
        self._records = {path: load(path) for path in files}
        self._ends: dict[str, tuple[Path, Call]] = {}
        for path, record in self._records.items():
            for call in record.calls:
                if _answers(call) and call.digest not in self._ends:
                    self._ends[call.digest] = (path, call)

    def complete(self, request: Request) -> Reply:
        """Answer as the recorded model did.

        Raises:
            NoRecording: no transcript holds the conversation.
            ClientFault: the recorded conversation ended in it.
        """
        if request.digest not in self._ends:
            raise self._missing(request)
        path, call = self._ends[request.digest]
        if isinstance(call.end, Reply):
            used = call.end.usage
            facts = {**call.end.facts, "recorded": path.name, "recorded_date": call.date, "recorded_usd": used.usd}
            return Reply(call.end.text, call.end.model, Usage(used.input_tokens, used.output_tokens, 0.0), facts=facts)
        assert isinstance(call.end, ClientFault)
        end = call.end
        raise type(end)(end.message, hint=end.hint, raw=end.raw, retry=False, may_cost=False)

    def words(self) -> list[str]:
        """Give the requests that were recorded, in their own words."""
        return list(dict.fromkeys(w for w in map(_words, self._records.values()) if w))

    def _missing(self, request: Request) -> NoRecording:
        known = self.words()
        if not known:
            return NoRecording("there are no transcripts to answer from", hint="take another author")
        shown = "".join(f"\n    {w}" for w in known[:MOST_LISTED])
        more = f"\n    and {len(known) - MOST_LISTED} more" if len(known) > MOST_LISTED else ""
        return NoRecording(
            f"no transcript holds this conversation ({request.stage}, sample {request.sample}); those that exist are of"
            f"{shown}{more}",
            hint="take one of them word for word; a transcript answers only the prompts that it was made with",
            recorded=known,
        )


def _answers(call: Call) -> bool:
    """Tell whether a call's end is one that asking again would not change."""
    return isinstance(call.end, Reply) or (
        isinstance(call.end, ClientFault) and not call.end.retry and call.end.may_cost
    )


def _words(record: Record) -> str:
    """Give the request's words, or where there are none the beginning of the first thing that was asked."""
    if record.words or not record.calls:
        return record.words
    asked = next((m.text for m in record.calls[0].request.messages if m.role == "user"), "")
    return " ".join(asked.split())[:80]
