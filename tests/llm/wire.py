"""A provider that fails on request: answers of OpenAI's and Anthropic's form, and every way to spoil them.

Each fault is a function from a random generator to what a transport does with one request: give a response, or raise.
The transport is the lowest layer there is: everything above it is what a real call goes through.
"""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import httpx2

from qimeng_attention.llm import chat

Handler = Callable[[httpx2.Request], httpx2.Response]
KEY = "sk-test-0123456789abcdef"
PROGRAM = "```tl\nKernel k\n```\n"


def openai(text: str | None, *, tokens: tuple[int, int] | None = (1200, 300), **choice: Any) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    usage = None if tokens is None else dict(zip(("prompt_tokens", "completion_tokens"), tokens, strict=True))
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, **choice}],
        "usage": usage and {**usage, "total_tokens": sum(tokens or ())},
    }


def anthropic(text: str, *, stop: str = "end_turn", tokens: tuple[int, int] = (1200, 300)) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "claude-opus-4-8",
        "content": [{"type": "text", "text": text}] if text else [],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": dict(zip(("input_tokens", "output_tokens"), tokens, strict=True)),
    }


class Body(httpx2.AsyncByteStream):
    """A body that comes in pieces, as over a wire, and may break off."""

    def __init__(self, data: bytes, error: Exception | None) -> None:
        self._data, self._error = data, error

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for begin in range(0, len(self._data), 64):
            yield self._data[begin : begin + 64]
        if self._error:
            raise self._error


def body(data: bytes, kind: str = "application/json") -> httpx2.Response:
    return httpx2.Response(200, headers={"content-type": kind}, content=data)


def good(_: random.Random) -> Any:
    return openai(PROGRAM)


def _status(code: int, message: str = "no", **headers: str) -> Callable[[random.Random], Any]:
    return lambda _: httpx2.Response(code, headers=headers, json={"error": {"message": message, "code": message}})


def _rate_limited(rng: random.Random) -> httpx2.Response:
    seconds = rng.choice(["0", "1", "7", "600", "-3", "soon", "1e9", "Sat, 28 Nov 2099 11:00:00 GMT"])
    return httpx2.Response(429, headers={"Retry-After": seconds}, json={"error": {"message": "slow down"}})


def _error(kind: type[Exception]) -> Callable[[random.Random], Any]:
    return lambda _: kind("the peer is gone")


def _cut_off(rng: random.Random) -> httpx2.Response:
    data = json.dumps(openai(PROGRAM)).encode()
    error = rng.choice([httpx2.ReadError, httpx2.RemoteProtocolError])("peer closed connection")
    return httpx2.Response(
        200, headers={"content-type": "application/json"}, stream=Body(data[: rng.randrange(len(data))], error)
    )


def _late_cut(rng: random.Random) -> httpx2.Response:
    data = json.dumps(openai(PROGRAM)).encode()[: rng.randrange(1, 300)]
    return httpx2.Response(
        200, headers={"content-type": "application/json"}, stream=Body(data, httpx2.ReadTimeout("silence"))
    )


def _invalid_utf8(rng: random.Random) -> httpx2.Response:
    data = json.dumps(openai("MARK")).encode()
    return body(data.replace(b"MARK", bytes([rng.choice([0xFF, 0xC0, 0x80]), 0x41])))


def _half_a_pair(_: random.Random) -> httpx2.Response:
    return body(json.dumps(openai("Kernel \ud800")).encode("ascii"))


def _malformed(rng: random.Random) -> httpx2.Response:
    data = json.dumps(openai(PROGRAM)).encode()
    return body(data[: rng.randrange(1, len(data) - 1)])


def _other_form(rng: random.Random) -> Any:
    whole = openai(PROGRAM)
    return rng.choice(
        [
            {"hello": 1},
            [1, 2],
            {**whole, "choices": []},
            {**whole, "choices": [{}]},
            body(b"<html>gateway</html>", "text/html"),
            body(b"null"),
            body(b""),
        ]
    )


def _refusal(rng: random.Random) -> Any:
    return rng.choice(
        [
            openai("", finish_reason="content_filter"),
            openai(None, message={"refusal": "I cannot help with that"}),
            httpx2.Response(400, json={"error": {"message": "filtered", "code": "content_filter"}}),
        ]
    )


def _fences(rng: random.Random) -> Any:
    return openai(
        rng.choice(["```python\nprint()\n```\n", "no fence at all", "~~~\nKernel k\n~~~\n", "```tl\nKernel k\n"])
    )


@dataclass(frozen=True)
class Kind:
    """A fault, the ends that it may come to if it stays, and whether a parser refuses what came instead."""

    make: Callable[[random.Random], Any]
    ends: tuple[type[chat.ClientFault], ...] = ()
    parser: bool = False  # the call succeeds; what was said is no answer


KINDS = {
    "429 with Retry-After": Kind(_rate_limited, (chat.RateLimited,)),
    "429 without Retry-After": Kind(_status(429), (chat.RateLimited,)),
    "no credit": Kind(_status(429, "insufficient_quota"), (chat.Misconfigured,)),
    "500": Kind(_status(500), (chat.ServerFault,)),
    "502": Kind(_status(502), (chat.ServerFault,)),
    "503": Kind(_status(503), (chat.ServerFault,)),
    "529": Kind(_status(529), (chat.ServerFault,)),
    "408": Kind(_status(408), (chat.TimedOut,)),
    "timeout while reading": Kind(_error(httpx2.ReadTimeout), (chat.TimedOut,)),
    "timeout while connecting": Kind(_error(httpx2.ConnectTimeout), (chat.TimedOut,)),
    "timeout in the answer": Kind(_late_cut, (chat.TimedOut,)),
    "no connection": Kind(_error(httpx2.ConnectError), (chat.Unreachable,)),
    "broke before the answer": Kind(_error(httpx2.RemoteProtocolError), (chat.Unreachable,)),
    "cut off": Kind(_cut_off, (chat.CutOff,)),
    "truncated": Kind(lambda _: openai("```tl\nKern", finish_reason="length"), (chat.Truncated,)),
    "all tokens thought": Kind(lambda _: openai("", finish_reason="length"), (chat.Truncated,)),
    "refused": Kind(_refusal, (chat.Refused,)),
    "empty": Kind(lambda rng: openai(rng.choice(["", "  \n", None])), (chat.Empty,)),
    "invalid UTF-8": Kind(_invalid_utf8, (chat.Garbled,)),
    "half a surrogate pair": Kind(_half_a_pair, (chat.Garbled,)),
    "malformed JSON": Kind(_malformed, (chat.Garbled,)),
    "another form": Kind(_other_form, (chat.Garbled,)),
    "400": Kind(_status(400), (chat.Misconfigured,)),
    "401": Kind(_status(401, f"incorrect key {KEY}"), (chat.Misconfigured,)),
    "403": Kind(_status(403), (chat.Misconfigured,)),
    "404": Kind(_status(404), (chat.Misconfigured,)),
    "413": Kind(_status(413), (chat.Misconfigured,)),
    "too long": Kind(_status(400, "context_length_exceeded"), (chat.Misconfigured,)),
    "wrong fence": Kind(_fences, parser=True),
    "two fences": Kind(lambda _: openai(PROGRAM + "or\n" + PROGRAM), parser=True),
    "fewer tokens than none": Kind(lambda _: openai(PROGRAM, tokens=(-5000, 300))),
    "tokens not reported": Kind(lambda _: openai(PROGRAM, tokens=None)),
}


@dataclass
class Server:
    """A transport that answers by a plan, and counts what it was asked and what it would charge."""

    plan: Callable[[int], Any]  # from the number of the request, from 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def transport(self) -> httpx2.MockTransport:
        return httpx2.MockTransport(self._handle)

    def _handle(self, request: httpx2.Request) -> httpx2.Response:
        self.asked.append(json.loads(request.content))
        self.headers.append(dict(request.headers))
        made = self.plan(len(self.asked) - 1)
        if isinstance(made, Exception):
            raise made
        response = made if isinstance(made, httpx2.Response) else httpx2.Response(200, json=made)
        if isinstance(response.stream, Body):
            return response
        return httpx2.Response(response.status_code, headers=response.headers, stream=Body(response.content, None))
