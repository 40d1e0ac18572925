"""From the words of `--author` to a client.

    command:PROGRAM ARGS    a program that reads the prompt and prints the answer
    file:FOLDER             a folder in which somebody answers
    replay                  the transcripts that come with the package
    replay:FOLDER           those of a folder, or one transcript
    anthropic:MODEL         a provider's model: also openai, deepseek, ollama, vllm

Not here: transcripts, budgets and retries around a client (recorded.py, retry.py), which `careful` puts together.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from qimeng_attention.errors import EnvironmentMissing, SpecError
from qimeng_attention.llm.budget import Budget
from qimeng_attention.llm.chat import Client
from qimeng_attention.llm.command import CommandClient
from qimeng_attention.llm.file import FileClient
from qimeng_attention.llm.recorded import Recorded
from qimeng_attention.llm.replay import ReplayClient
from qimeng_attention.llm.retry import Retried
from qimeng_attention.llm.transcript import Transcript

SHIPPED = Path(__file__).parent / "transcripts"  # of real models, for runs without a key
FORMS = {
    "command": "command:PROGRAM ARGS",
    "file": "file:FOLDER",
    "replay": "replay or replay:FOLDER",
    "openai": "openai:MODEL",
    "anthropic": "anthropic:MODEL",
    "deepseek": "deepseek:MODEL",
    "ollama": "ollama:MODEL",
    "vllm": "vllm:MODEL",
}
EXTRA = "pip install 'qimeng-attention[llm]'"


def open_client(name: str, *, model: str = "", patience_s: float = 0.0) -> Client:
    """Give the client that a name asks for.

    `model` is who answers through a program or in a folder, for transcripts; `patience_s` how long a folder waits.

    Raises:
        SpecError: there is no such client.
        EnvironmentMissing: a provider's library or key is missing.
        TranscriptError: transcripts to answer from are not there, or make no sense.
    """
    kind, _, rest = name.strip().partition(":")
    kind, rest = kind.strip().lower(), rest.strip()
    if kind == "replay":
        return ReplayClient(Path(rest).expanduser() if rest else SHIPPED)
    if kind not in FORMS or not rest:
        raise _unknown(name, kind)
    if kind == "file":
        return FileClient(Path(rest).expanduser(), model=model, patience_s=patience_s)
    if kind == "command":
        try:
            return CommandClient(shlex.split(rest), model=model)
        except ValueError as e:
            raise SpecError(f"the command cannot be read: {e}", hint="close its quotes", field="author") from e
    try:
        from qimeng_attention.llm.provider import ProviderClient
    except ImportError as e:
        raise EnvironmentMissing(f"{name} needs the extra llm ({e.name} is not there)", hint=EXTRA) from e
    return ProviderClient(f"{kind}:{rest}")


def careful(client: Client, transcript: Transcript, budget: Budget | None = None) -> Client:
    """Put a transcript, a budget and retries around a client, in the order that writes and pays for each try."""
    return Retried(Recorded(client, transcript, budget))


def _unknown(name: str, kind: str) -> SpecError:
    allowed = list(FORMS.values())
    if kind in FORMS:
        return SpecError(
            f"{name!r} is not whole", hint=f"write {FORMS[kind]}", field="author", value=name, allowed=allowed
        )
    return SpecError(
        f"there is no author {name!r}",
        hint=f"take planner, or one of: {', '.join(allowed)}",
        field="author",
        value=name,
        allowed=["planner", *allowed],
    )
