"""A client that says what a test hands it, and requests to ask it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from qimeng_attention.llm import chat

USED = chat.Usage(100, 50)


@dataclass
class Scripted:
    ends: Sequence[chat.Reply | chat.ClientFault]
    name: str = "openai:gpt-4o"
    asked: list[chat.Request] = field(default_factory=list)

    def complete(self, request: chat.Request) -> chat.Reply:
        self.asked.append(request)
        end = self.ends[len(self.asked) - 1]
        if isinstance(end, chat.ClientFault):
            raise end
        return end


def reply(text: str = "Kernel k", usage: chat.Usage = USED) -> chat.Reply:
    return chat.Reply(text, "gpt-4o", usage)


def request(text: str = "Write it.", *, sample: int = 0, stage: str = "sketch", max_tokens: int = 1000) -> chat.Request:
    return chat.Request(chat.conversation(text), stage, sample, max_tokens=max_tokens)
