"""Providers of models over HTTP, through pydantic-ai: OpenAI and what speaks its protocol, Anthropic, DeepSeek.

Every way in which a call may fail becomes a class of chat.py here, with what came over the wire kept in `raw`. The
libraries retry nothing themselves, so that each try is written down and paid for by name.

Not here: retries (retry.py), prices (prices.py). This module needs the extra `llm`; clients.py imports it when asked.
"""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import httpx2
from pydantic_ai import direct
from pydantic_ai import exceptions as x
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, SystemPromptPart, TextPart, UserPromptPart
from pydantic_ai.models import Model

from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.llm.chat import (
    ClientFault,
    CutOff,
    Empty,
    Garbled,
    Misconfigured,
    RateLimited,
    Refused,
    Reply,
    Request,
    ServerFault,
    TimedOut,
    Truncated,
    Unreachable,
    Usage,
)

MOST_HEARD = 32 << 20  # bytes of an answer; a server that sends without end is left there
SAMPLING = ("temperature",)


class SamplingDropped(UserWarning):
    """A sampling parameter was left out, since the provider refuses it."""


@dataclass(frozen=True, slots=True)
class Provider:
    """How a provider is reached."""

    model: Callable[[str, Any], Model]  # from a model's name and an HTTP client
    key: str = ""  # the environment variable that must hold its key
    base_url: str = ""  # and the one that may name another address, which may need no key


def _openai(name: str, http: Any) -> Model:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    return OpenAIChatModel(name, provider=OpenAIProvider(http_client=http))


def _anthropic(name: str, http: Any) -> Model:
    from pydantic_ai.models.anthropic import AnthropicModel
    from pydantic_ai.providers.anthropic import AnthropicProvider

    return AnthropicModel(name, provider=AnthropicProvider(http_client=http))


def _deepseek(name: str, http: Any) -> Model:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.deepseek import DeepSeekProvider

    return OpenAIChatModel(name, provider=DeepSeekProvider(http_client=http))


def _ollama(name: str, http: Any) -> Model:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.ollama import OllamaProvider

    url = os.environ.get("OLLAMA_BASE_URL") or "http://localhost:11434/v1"
    return OpenAIChatModel(name, provider=OllamaProvider(base_url=url, http_client=http))


def _vllm(name: str, http: Any) -> Model:
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.vllm import VLLMProvider

    url = os.environ.get("VLLM_BASE_URL") or "http://localhost:8000/v1"
    return OpenAIChatModel(name, provider=VLLMProvider(base_url=url, http_client=http))


PROVIDERS = {
    "openai": Provider(_openai, "OPENAI_API_KEY", "OPENAI_BASE_URL"),
    "anthropic": Provider(_anthropic, "ANTHROPIC_API_KEY"),
    "deepseek": Provider(_deepseek, "DEEPSEEK_API_KEY"),
    "ollama": Provider(_ollama),
    "vllm": Provider(_vllm),
}


class Wire:
    """What went over the wire of one call: the body that was sent, and as much of the answer as came."""

    def __init__(self) -> None:
        self.sent: dict[str, Any] = {}
        self.status: int | None = None
        self.heard = bytearray()

    async def on_request(self, request: Any) -> None:
        """Keep what is sent."""
        self.sent = json.loads(request.content)

    async def on_response(self, response: Any) -> None:
        """Keep what comes, piece by piece, so that it is there when the rest does not come."""
        self.status = response.status_code
        response.stream = _Heard(response.stream, self.heard)

    @property
    def raw(self) -> str:
        """What came, as text, whatever it is."""
        return bytes(self.heard).decode("utf-8", "backslashreplace")


class _Heard(httpx2.AsyncByteStream):  # type: ignore[misc]
    """A stream that is kept while it is read."""

    def __init__(self, stream: Any, heard: bytearray) -> None:
        self._stream, self._heard = stream, heard

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._stream:
            self._heard.extend(piece)
            if len(self._heard) > MOST_HEARD:
                raise httpx2.ReadError(f"the answer is longer than {MOST_HEARD >> 20} MiB")
            yield piece

    async def aclose(self) -> None:
        await self._stream.aclose()


class ProviderClient:
    """A model of a provider, by its string, "anthropic:NAME"; keys come from the environment alone."""

    def __init__(self, name: str, *, transport: Any = None) -> None:
        """Look for the provider's key.

        Raises:
            EnvironmentMissing: it is not set.
        """
        kind, _, self.model = name.partition(":")
        self.name, self.kind, self._provider, self._transport = name, kind, PROVIDERS[kind], transport
        self._dropped: set[str] = set()
        self._lock = threading.Lock()
        key, url = self._provider.key, self._provider.base_url
        if key and not os.environ.get(key) and not (url and os.environ.get(url)):
            raise EnvironmentMissing(
                f"{name} needs a key, and {key} is not set",
                hint=f"export {key}=..., or let a program or a person answer: command:PROGRAM, file:FOLDER",
            )

    def complete(self, request: Request) -> Reply:
        """Ask the model once; a sampling parameter that it refuses is left out, with one warning.

        Raises:
            ClientFault: what came instead of an answer.
        """
        began = time.monotonic()
        wire = Wire()
        try:
            response = _run(self._ask(request, wire))
        except Exception as e:
            refused = self._refused_setting(e, request, wire)
            if refused:
                self._drop(refused)
                return self.complete(request)
            raise fault_of(e, wire, self.name, request) from e
        for setting in SAMPLING:
            if getattr(request, setting) is not None and setting not in wire.sent:
                self._drop(setting)
        return self._reply(response, request, wire, time.monotonic() - began)

    async def _ask(self, request: Request, wire: Wire) -> ModelResponse:
        hooks = {"request": [wire.on_request], "response": [wire.on_response]}
        async with httpx2.AsyncClient(
            transport=self._transport, event_hooks=hooks, headers={"accept-encoding": "identity"}
        ) as http:
            model = self._provider.model(self.model, http)
            settings: dict[str, Any] = {
                "max_tokens": request.max_tokens,
                "timeout": request.timeout_s,  # between two pieces of the answer
                "request_timeout": request.timeout_s,  # for the whole
                "max_retries": 0,
            }
            if self.kind in ("deepseek", "ollama"):  # NOTE: they know the older name of the limit alone
                settings["extra_body"] = {"max_tokens": request.max_tokens}
            profile: Any = model.profile  # a dictionary of what the model can
            if not profile.get("anthropic_disallows_sampling_settings"):
                settings |= {
                    s: v for s in SAMPLING if (v := getattr(request, s)) is not None and s not in self._dropped
                }
            return await direct.model_request(model, _turns(request), model_settings=settings)

    def _reply(self, response: Any, request: Request, wire: Wire, seconds: float) -> Reply:
        """Give the answer, or the fault that a well-formed response tells of."""
        usage = _usage(response)
        more: dict[str, Any] = {"raw": wire.raw, "usage": usage}
        text = response.text or ""
        if response.finish_reason == "length":
            raise Truncated(
                f"the answer of {self.name} reached {request.max_tokens:,} tokens", hint="allow more tokens", **more
            )
        if response.finish_reason == "content_filter":
            raise Refused(f"{self.name} declines to answer", hint="put the request in other words", **more)
        if response.finish_reason == "error":
            raise ServerFault(f"{self.name} failed while it answered", hint="ask again", **more)
        if not text.strip():
            raise Empty(f"{self.name} answered nothing", hint="ask again", **more)
        facts = {
            "provider": response.provider_name or self.kind,
            "id": response.provider_response_id,
            "date": response.timestamp.isoformat(timespec="seconds"),
            "finish_reason": response.finish_reason,
            "sent": {k: v for k, v in wire.sent.items() if k not in ("messages", "system")},
        }
        if self._dropped:
            facts["dropped"] = sorted(self._dropped)
        return Reply(text, response.model_name or self.model, usage, seconds, facts)

    def _refused_setting(self, e: Exception, request: Request, wire: Wire) -> str:
        """Give the sampling parameter that a provider names as the reason of its refusal, if that was sent."""
        if not isinstance(e, x.ModelHTTPError) or e.status_code not in (400, 422):
            return ""
        return next((s for s in SAMPLING if s in wire.sent and s in wire.raw and s not in self._dropped), "")

    def _drop(self, setting: str) -> None:
        with self._lock:
            new = setting not in self._dropped
            self._dropped.add(setting)
        if new:
            warnings.warn(f"{self.name} takes no {setting}: it was left out", SamplingDropped, stacklevel=3)


def fault_of(e: Exception, wire: Wire, name: str, request: Request) -> ClientFault:
    """Give the class of chat.py that an exception of the libraries belongs to."""
    more: dict[str, Any] = {"raw": wire.raw or str(e)}
    sent = getattr(e, "phase", None) not in ("pool", "connect")
    status = getattr(e, "status_code", None)
    if isinstance(e, x.ModelTimeoutError | x.ModelRequestTimeout) or status == 408:
        message = f"{name} did not answer within {request.timeout_s:g} s"
        return TimedOut(message, hint="allow more time", may_cost=sent and status != 408, **more)
    if isinstance(e, x.ModelConnectionError):
        if wire.status is not None:
            return CutOff(f"the answer of {name} broke off after {len(wire.heard):,} bytes", hint="ask again", **more)
        return Unreachable(f"{name} cannot be reached", hint="check the network and the address", may_cost=sent, **more)
    if isinstance(e, x.ModelQuotaExceededError):
        return Misconfigured(f"the account of {name} has no credit left", hint="add credit, or take another", **more)
    if isinstance(e, x.ModelRateLimitError) or status == 429:
        return RateLimited(f"{name} asks to wait", hint="ask again later", wait_s=_wait(e), **more)
    if isinstance(e, x.ModelUnavailableError):
        return ServerFault(
            f"{name} is overloaded or down", hint="ask again later", wait_s=_wait(e), may_cost=False, **more
        )
    if isinstance(e, x.ModelServerError) or (status or 0) >= 500:
        return ServerFault(f"{name} failed ({status})", hint="ask again", wait_s=_wait(e), **more)
    if isinstance(e, x.ContentFilterError) or getattr(e, "provider_error_code", None) in _FILTERS:
        return Refused(f"{name} declines to answer", hint="put the request in other words", **more)
    if isinstance(e, x.ModelContextWindowExceededError) or status == 413:
        return Misconfigured(
            f"the conversation is longer than {name} takes", hint="take a model with more room", **more
        )
    if isinstance(e, x.ModelAuthenticationError):
        return Misconfigured(f"{name} does not accept the key ({status})", hint="check the key", **more)
    if isinstance(e, x.ModelNotFoundError):
        return Misconfigured(f"there is no {name} ({status})", hint="check the model's name", **more)
    if isinstance(e, x.ModelHTTPError):
        return Misconfigured(f"{name} refuses the request ({status})", hint="its words are in the transcript", **more)
    if wire.status is None:
        return Misconfigured(f"{name} could not be asked ({type(e).__name__})", hint="check its settings", **more)
    return Garbled(f"the answer of {name} is not of the form that it promises", hint="ask again", **more)


_FILTERS = ("content_filter", "content_policy_violation")


def _wait(e: Exception) -> float | None:
    wait: float | None = getattr(e, "retry_after", None)
    return wait


def _usage(response: Any) -> Usage:
    """Give the tokens that the provider reports; none reported, or fewer than none, is unknown, not nothing."""
    used = response.usage
    if used.input_tokens < 0 or used.output_tokens < 0 or not (used.input_tokens or used.output_tokens):
        return Usage()
    return Usage(used.input_tokens, used.output_tokens)


def _turns(request: Request) -> list[ModelMessage]:
    """Put the conversation into the library's words."""
    turns: list[ModelMessage] = []
    parts: list[Any] = []
    for message in request.messages:
        if message.role == "assistant":
            turns += [ModelRequest(parts=parts), ModelResponse(parts=[TextPart(message.text)])]
            parts = []
        else:
            parts.append((SystemPromptPart if message.role == "system" else UserPromptPart)(message.text))
    return [*turns, ModelRequest(parts=parts)]


def _run(coroutine: Any) -> Any:
    """Run a coroutine to its end, also where the caller is inside a loop of its own (a notebook, a server)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(coroutine)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()
