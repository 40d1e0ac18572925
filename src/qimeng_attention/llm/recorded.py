"""A client that writes everything down, keeps to a budget, and asks nothing twice.

Each call: is its answer in the transcript already? then that; else reserve, write that it begins, ask, write what came,
settle. A run that was stopped after any of these steps goes on from the transcript: what may have been charged is told
again, not asked again, and what it cost is counted.

Not here: asking again after a fault (retry.py), which goes around this one, so that each try is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.chat import (
    NO_USAGE,
    BudgetReached,
    Client,
    ClientFault,
    Garbled,
    NoRecording,
    Reply,
    Request,
    Stale,
    Truncated,
    Waiting,
)
from qimeng_attention.llm.transcript import Call, Transcript

NOT_MADE = (BudgetReached, NoRecording, Stale, Waiting)  # faults of calls that reached nobody


class Recorded:
    """Another client, with a transcript and a budget."""

    def __init__(
        self,
        client: Client,
        transcript: Transcript,
        budget: Budget | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = client.name
        self._client, self._transcript, self._clock = client, transcript, clock
        self._budget = budget or Budget()
        self._lock = threading.Lock()
        self._told: dict[str, int] = {}  # paid faults of an earlier run that were told again, by digest
        if self._budget.once(str(transcript.path.resolve())):
            for call in transcript.earlier:
                self._restore(call)

    def complete(self, request: Request) -> Reply:
        """Answer from the transcript, or ask and write down.

        Raises:
            ClientFault: those of the client, BudgetReached before it is asked.
        """
        earlier = self._earlier(request)
        if isinstance(earlier, Reply):
            return earlier
        if earlier is not None:
            raise earlier
        try:
            worst = self._budget.reserve(self.name, request)
        except BudgetReached as fault:
            self._transcript.failed(self._transcript.asked(self.name, request, None), fault, 0.0)
            raise
        call = self._waiting(request) or self._transcript.asked(self.name, request, worst)
        began = self._clock()
        try:
            reply = _sound(self._client.complete(request))
        except ClientFault as fault:
            if not (isinstance(fault, Waiting) and isinstance(call.end, Waiting)):
                self._transcript.failed(call, fault, self._clock() - began)
            self._budget.settle(
                worst, self.name, fault.usage, charged=fault.may_cost, counts=not isinstance(fault, NOT_MADE)
            )
            raise
        usage = replace(reply.usage, usd=self._budget.usd(self.name, reply.usage))
        reply = replace(reply, usage=usage, seconds=reply.seconds or self._clock() - began)
        self._transcript.said(call, reply, usage)
        self._budget.settle(worst, self.name, usage)
        return reply

    def _earlier(self, request: Request) -> Reply | ClientFault | None:
        """Give what was said to the conversation before: an answer, else the next fault that may have been charged."""
        digest = request.digest
        calls = [c for c in self._calls(digest) if _stands(c, request)]
        reply = next((c.end for c in calls if isinstance(c.end, Reply)), None)
        if reply is not None:
            return reply
        if calls and isinstance(last := calls[-1].end, ClientFault) and not last.retry:
            return _again(last)
        earlier = len(self._transcript.earlier)
        paid = [c.end for c in calls if c.number <= earlier and isinstance(c.end, ClientFault)]
        with self._lock:
            told = self._told.get(digest, 0)
            self._told[digest] = told + 1
        return _again(paid[told]) if told < len(paid) else None

    def _waiting(self, request: Request) -> Call | None:
        """Give the call that waits for this answer: a run that looks again and again writes it down once."""
        calls = self._calls(request.digest)
        return calls[-1] if calls and isinstance(calls[-1].end, Waiting) else None

    def _calls(self, digest: str) -> list[Call]:
        return [c for c in list(self._transcript.calls) if c.digest == digest and c.client == self.name]

    def _restore(self, call: Call) -> None:
        if call.reserved is None:
            return
        self._budget.restore(
            call.reserved,
            call.client,
            call.usage,
            charged=call.may_cost,
            counts=not isinstance(call.end, NOT_MADE),
        )


def _stands(call: Call, request: Request) -> bool:
    """Tell whether a call's end may have been charged, and would be the same for what is asked now."""
    if isinstance(call.end, Truncated) and request.max_tokens > call.request.max_tokens:
        return False  # the answer has more room
    return isinstance(call.end, Reply) or (call.end is not None and call.end.may_cost)


def _again(fault: ClientFault) -> ClientFault:
    """Give a fault afresh, marked as told from the transcript."""
    again = type(fault)(
        fault.message,
        hint=fault.hint,
        raw=fault.raw,
        wait_s=fault.wait_s,
        usage=fault.usage,
        retry=fault.retry,
        may_cost=fault.may_cost,
    )
    again.recorded = True
    return again


def _sound(reply: Reply) -> Reply:
    """Refuse an answer that is no text: half a surrogate pair cannot be written as UTF-8."""
    try:
        reply.text.encode()
    except UnicodeEncodeError as e:
        raise Garbled(
            "the answer holds half of a surrogate pair, which is no text",
            hint="ask again",
            raw=reply.text.encode("ascii", "backslashreplace").decode(),
            usage=reply.usage or NO_USAGE,
        ) from e
    return reply
