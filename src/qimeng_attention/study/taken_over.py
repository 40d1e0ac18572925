"""Answers that another method's sample got to the same prompts, taken over instead of asked for again.

`translated` begins with the stages of `two-stage`: the same prompts, word for word, up to TL that passes. A sample of
it goes on from the two-stage sample of the same request, model, round and number, so that the two differ in the
translation alone. Each answer is written into the sample's own transcript with the transcript that it came from.

The first prompt of a conversation has to be the same, and so have all answers in it. A repair has to be asked for by
the same gate; what a judge says may differ, since each method judges its own text on inputs of its own.

Not here: asking (llm), which stages a method has (author/llm/methods.py).
"""

from __future__ import annotations

from pathlib import Path

from qimeng_attention.llm.chat import Client, Message, Reply, Request, Waiting
from qimeng_attention.llm.transcript import Call, Transcript, load

TAKEN_OVER = "taken over from"  # among an answer's facts: the transcript


class Earlier:
    """The transcript of another sample, read again each time it has grown; it need not exist."""

    def __init__(self, path: Path, client: str) -> None:
        """Name the transcript, and the client that is asked now: what another one answered is no answer of it."""
        self.path, self._client, self._size, self._calls = path, client, -1, list[Call]()

    def find(self, request: Request) -> Call | None:
        """Give the call that answers a request, or that waits for its answer."""
        if not self.path.is_file():
            return None
        if (size := self.path.stat().st_size) != self._size:
            self._calls, self._size = load(self.path).calls, size
        fits = [c for c in self._calls if _same_author(c.client, self._client) and _same(c.request, request)]
        answered = [c for c in fits if isinstance(c.end, Reply)]
        waiting = [c for c in fits if isinstance(c.end, Waiting)]
        return next(iter(answered), waiting[-1] if waiting else None)


class TakenOver:
    """A client that answers from another sample's transcript first."""

    def __init__(self, client: Client, transcript: Transcript, earlier: Earlier) -> None:
        self.name, self._client, self._transcript, self._earlier = client.name, client, transcript, earlier

    def complete(self, request: Request) -> Reply:
        """Answer as the other sample was answered, or ask.

        Raises:
            Waiting: the other sample waits for the same answer: it is asked for once.
            ClientFault: those of the client.
        """
        own = [c.end for c in self._transcript.calls if c.digest == request.digest and isinstance(c.end, Reply)]
        found = None if own else self._earlier.find(request)
        if found is None:
            return own[0] if own else self._client.complete(request)
        if isinstance(found.end, Waiting):
            raise Waiting(f"{self._earlier.path} waits for the same answer: {found.end.message}", hint=found.end.hint)
        assert isinstance(found.end, Reply)
        said = found.end
        reply = Reply(
            said.text, said.model, said.usage, said.seconds, said.facts | {TAKEN_OVER: str(self._earlier.path)}
        )
        call = self._transcript.asked(self.name, request, None)  # nothing is reserved: it was paid for there
        self._transcript.said(call, reply, said.usage)
        return reply


def _same_author(one: str, other: str) -> bool:
    """Tell whether two clients' names are of one author; samples answered in files have a folder each."""
    kinds = [name.partition(":")[0] for name in (one, other)]
    return one == other or kinds == ["file", "file"]


def _same(there: Request, here: Request) -> bool:
    """Tell whether a recorded conversation is the one that is asked now, up to a judge's numbers in it."""
    if there.sample != here.sample or len(there.messages) != len(here.messages):
        return False
    return there.messages[0] == here.messages[0] and all(
        _same_turn(a, b) for a, b in zip(there.messages[1:], here.messages[1:], strict=True)
    )


def _same_turn(there: Message, here: Message) -> bool:
    if there.role != here.role:
        return False
    if there.role == "assistant":
        return there.text == here.text
    return there.text.partition("\n")[0] == here.text.partition("\n")[0]  # a repair's first line names its gate
