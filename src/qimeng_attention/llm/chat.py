"""What a client of a language model takes and gives: a request, a reply, and the ways in which none comes.

A client is one method. Each fault has a class of its own, which says whether asking again may help, how long to wait,
and whether the try may have cost something; the words of a provider stay in it for the ledger, and reach no prompt.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, Protocol

from qimeng_attention.errors import QimengError

_TURN = re.compile(r"^[ \t]*\[(?:system|user|assistant)\][ \t]*$", re.MULTILINE)
Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a model is asked: the whole conversation so far, its last turn the user's."""

    messages: tuple[Message, ...]
    stage: str  # what the answer is for: "sketch", "code", "repair 1"
    sample: int = 0  # which of several answers to the same words
    max_tokens: int = 16_000  # of the answer
    temperature: float | None = None  # None leaves it to the provider
    timeout_s: float = 600.0

    @property
    def digest(self) -> str:
        """Name the conversation and the sample, not how patiently they are asked: what a recording is found by."""
        said = [asdict(m) for m in self.messages]
        return hashlib.sha256(json.dumps([said, self.sample], sort_keys=True).encode()).hexdigest()[:20]

    def rendered(self) -> str:
        """Give the conversation as one text, for programs and people that take one."""
        if len(self.messages) == 1:
            return self.messages[0].text
        # SAFETY: a line of a text that looks like the beginning of a turn is quoted.
        quoted = ((m.role, _TURN.sub(r"> \g<0>", m.text)) for m in self.messages)
        said = (f"[{role}]\n{text}" for role, text in quoted)
        return "\n\n".join(said) + "\n\n[assistant]\n"


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens and money of one call; None where nobody knows."""

    input_tokens: int | None = None
    output_tokens: int | None = None
    usd: float | None = None


NO_USAGE = Usage()


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model said, before anybody reads it."""

    text: str
    model: str  # as the provider names it
    usage: Usage = NO_USAGE
    seconds: float = 0.0
    facts: dict[str, Any] = field(default_factory=dict)  # provider, id, date: never a secret


class Client(Protocol):
    """Something that answers: a provider, a program, a folder that a person writes to, a recording."""

    name: str  # of the client and its model, as transcripts call it

    def complete(self, request: Request) -> Reply:
        """Answer a request.

        Raises:
            ClientFault: one of its classes below; nothing else.
        """
        ...


class ClientFault(QimengError):
    """No usable answer came; `retry` tells whether asking again may help, `may_cost` whether the try may be charged."""

    exit_code = 3
    code = "LM000"
    kind = "fault"
    retry = False
    may_cost = True
    recorded = False  # told again from a transcript: nothing was asked

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        raw: str = "",
        wait_s: float | None = None,
        usage: Usage = NO_USAGE,
        retry: bool | None = None,
        may_cost: bool | None = None,
        **more: Any,
    ) -> None:
        """Keep the provider's words in `raw`, out of the message, and how long it asks to wait.

        `retry` and `may_cost` are for a try of which more is known than its class says.
        """
        super().__init__(message, hint=hint, kind=self.kind, **more)
        self.raw, self.wait_s, self.usage = raw, wait_s, usage
        self.retry = self.retry if retry is None else retry
        self.may_cost = self.may_cost if may_cost is None else may_cost


class RateLimited(ClientFault):
    """The provider asks to wait."""

    code, kind, retry, may_cost = "LM429", "rate limited", True, False


class ServerFault(ClientFault):
    """The provider failed."""

    code, kind, retry = "LM500", "server fault", True


class Unreachable(ClientFault):
    """No connection, or one that broke before an answer began."""

    code, kind, retry, may_cost = "LM501", "unreachable", True, False


class TimedOut(ClientFault):
    """No answer within the time."""

    code, kind, retry = "LM408", "timed out", True


class CutOff(ClientFault):
    """The answer broke off in the middle of the transfer; what came is kept in `raw`."""

    code, kind, retry = "LM502", "cut off", True


class Truncated(ClientFault):
    """The answer reached the most tokens that were allowed; what came is kept in `raw`."""

    code, kind = "LM413", "truncated"


class Refused(ClientFault):
    """The model or its provider declines to answer."""

    code, kind = "LM403", "refused"


class Empty(ClientFault):
    """An answer without text."""

    code, kind, retry = "LM204", "empty", True


class Garbled(ClientFault):
    """An answer that is no UTF-8, or not of the form that the provider promises."""

    code, kind, retry = "LM422", "garbled", True


class Misconfigured(ClientFault):
    """The provider says that the request or the key is wrong: asking again changes nothing."""

    exit_code = 2
    code, kind, may_cost = "LM400", "misconfigured", False


class Waiting(ClientFault):
    """The answer is to be given by somebody, and is not there yet: run again once it is."""

    exit_code = 4
    code, kind, may_cost = "LM102", "waiting", False


class Stale(ClientFault):
    """An answer is there, but to another prompt than the one that is asked."""

    exit_code = 2
    code, kind, may_cost = "LM409", "stale", False


class NoRecording(ClientFault):
    """No transcript holds an answer to this conversation."""

    exit_code = 2
    code, kind, may_cost = "LM404", "no recording", False


class BudgetReached(ClientFault):
    """A call might exceed what the user allows; it was not made."""

    exit_code = 5
    code, kind, may_cost = "LM402", "budget reached", False


FAULTS: dict[str, type[ClientFault]] = {
    c.kind: c
    for c in (
        ClientFault,
        RateLimited,
        ServerFault,
        Unreachable,
        TimedOut,
        CutOff,
        Truncated,
        Refused,
        Empty,
        Garbled,
        Misconfigured,
        Waiting,
        Stale,
        NoRecording,
        BudgetReached,
    )
}  # by the name that transcripts keep


def conversation(*texts: str, system: str = "") -> tuple[Message, ...]:
    """Give turns that alternate between user and assistant, the user first."""
    turns: Sequence[Role] = ("user", "assistant")
    said = tuple(Message(turns[n % 2], text) for n, text in enumerate(texts))
    return ((Message("system", system), *said)) if system else said
