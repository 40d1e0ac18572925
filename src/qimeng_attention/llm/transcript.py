"""Everything that was said in a run, as lines of JSON that are only ever added to.

    run      the words of the request, the date, facts of the run
    asked    a call begins: its conversation, parameters, and the worst case that was reserved for it
    said     its answer, as it came, before anybody reads it
    failed   or what came instead
    note     what became of answers: gates, repairs, anything a run wants to keep
    torn     the line before was cut off: the process ended while it wrote

A call that was asked and has no end was stopped in the middle: nobody knows whether it was charged. Secrets are taken
out of every line before it is written.

Not here: when to ask (recorded.py), how to answer from it (replay.py).
"""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from qimeng_attention.errors import QimengError
from qimeng_attention.llm.budget import Reservation
from qimeng_attention.llm.chat import FAULTS, NO_USAGE, ClientFault, Message, Reply, Request, Usage
from qimeng_attention.llm.redact import redactor

FORMAT = 1
SUFFIX = ".jsonl"


class TranscriptError(QimengError):
    """A transcript that cannot be read, or that another process writes."""

    exit_code, code = 2, "LM900"


@dataclass(slots=True)
class Call:
    """One try: what was asked, and its end, None where the run was stopped in the middle."""

    number: int
    client: str
    request: Request
    digest: str
    attempt: int  # which try of the same conversation, from 1
    reserved: Reservation | None
    date: str
    end: Reply | ClientFault | None = None
    seconds: float = 0.0

    @property
    def usage(self) -> Usage:
        """What was reported of it."""
        return NO_USAGE if self.end is None else self.end.usage

    @property
    def may_cost(self) -> bool:
        """Whether the provider may charge it."""
        return self.end.may_cost if isinstance(self.end, ClientFault) else True


@dataclass(slots=True)
class Record:
    """A transcript as it is read back."""

    calls: list[Call] = field(default_factory=list)
    words: str = ""  # of the request
    facts: dict[str, Any] = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    date: str = ""


def load(path: Path) -> Record:
    """Read a transcript.

    Raises:
        TranscriptError: it cannot be read, or a line of it makes no sense.
    """
    try:
        data = path.read_bytes()
    except OSError as e:
        raise TranscriptError(f"{path} cannot be read: {e.strerror}", hint="name a transcript that exists") from e
    record, lines = Record(), data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, start=1):
        try:
            entry = json.loads(line)
            if entry["event"] != "torn":
                _take(record, entry)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
            torn = not data.endswith(b"\n") if number == len(lines) else b'{"event": "torn"' in lines[number]
            if torn:
                continue  # the process ended while it wrote the line
            raise TranscriptError(
                f"line {number} of {path} is no entry of a transcript ({type(e).__name__})",
                hint="transcripts are not edited: restore it, or start a new one",
            ) from e
    return record


def _take(record: Record, entry: dict[str, Any]) -> None:
    """Add what a line says."""
    event = entry["event"]
    if event == "run":
        if entry["format"] != FORMAT:
            raise ValueError("another format")
        if not record.date:
            record.words, record.facts, record.date = entry["words"], entry["facts"], entry["date"]
    elif event == "asked":
        record.calls.append(_asked(entry))
    elif event in ("said", "failed"):
        call = next(c for c in reversed([None, *record.calls]) if c is None or c.number == entry["call"])
        if call is None:
            raise ValueError("the end of a call that did not begin")
        call.end, call.seconds = (_said if event == "said" else _failed)(entry), entry["seconds"]
    elif event == "note":
        record.notes.append(entry)
    else:
        raise ValueError("an unknown event")


def _asked(e: dict[str, Any]) -> Call:
    messages = tuple(Message(m["role"], m["text"]) for m in e["messages"])
    request = Request(messages, e["stage"], e["sample"], e["max_tokens"], e["temperature"], e["timeout_s"])
    reserved = Reservation(**e["reserved"]) if e["reserved"] else None
    return Call(e["call"], e["client"], request, e["digest"], e["attempt"], reserved, e["date"])


def _said(e: dict[str, Any]) -> Reply:
    return Reply(e["text"], e["model"], Usage(**e["usage"]), e["seconds"], e["facts"])


def _failed(e: dict[str, Any]) -> ClientFault:
    return FAULTS[e["kind"]](
        e["message"],
        hint=e["hint"],
        raw=e["raw"],
        wait_s=e["wait_s"],
        usage=Usage(**e["usage"]),
        retry=e["retry"],
        may_cost=e["may_cost"],
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


class Transcript:
    """A transcript that is written; what an earlier run wrote into it is in `earlier`."""

    def __init__(
        self,
        path: Path,
        *,
        words: str = "",
        facts: dict[str, Any] | None = None,
        clean: Callable[[Any], Any] | None = None,
        now: Callable[[], str] = _now,
    ) -> None:
        """Open a transcript, which may exist.

        Raises:
            TranscriptError: another process writes it, it makes no sense, or the folder cannot be written.
        """
        self.path, self._clean, self._now = path, clean or redactor(), now
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as e:
            raise TranscriptError(f"{path} cannot be written: {e.strerror}", hint="name another folder") from e
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(self._file).st_size
            if size and os.pread(self._file, 1, size - 1) != b"\n":
                os.write(self._file, b"\n")
                self._write("torn")
            record = load(path)
        except BlockingIOError:
            os.close(self._file)
            raise TranscriptError(
                f"another process writes {path}", hint="wait until it ends, or name another transcript"
            ) from None
        except BaseException:
            os.close(self._file)
            raise
        self.earlier = tuple(record.calls)
        self._notes = list(record.notes)
        self.calls = list(record.calls)
        if not record.date:
            self._write("run", format=FORMAT, words=words, facts=facts or {})

    def close(self) -> None:
        """Let others write it."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
            self._file = -1

    def __enter__(self) -> Transcript:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def asked(self, client: str, request: Request, reserved: Reservation | None) -> Call:
        """Write that a call begins, before it does."""
        with self._lock:
            attempt = 1 + sum(c.client == client and c.digest == request.digest for c in self.calls)
            call = Call(len(self.calls) + 1, client, request, request.digest, attempt, reserved, self._now())
            self.calls.append(call)
            self._write(
                "asked",
                call=call.number,
                client=client,
                stage=request.stage,
                sample=request.sample,
                attempt=attempt,
                digest=call.digest,
                max_tokens=request.max_tokens,
                temperature=request.temperature,
                timeout_s=request.timeout_s,
                reserved=asdict(reserved) if reserved else None,
                messages=[asdict(m) for m in request.messages],
            )
        return call

    def said(self, call: Call, reply: Reply, usage: Usage) -> None:
        """Write an answer, as it came; `usage` has its cost where that is known."""
        with self._lock:
            call.end, call.seconds = reply, reply.seconds
            self._write(
                "said",
                call=call.number,
                model=reply.model,
                usage=asdict(usage),
                seconds=round(reply.seconds, 3),
                facts=reply.facts,
                text=reply.text,
            )

    def failed(self, call: Call, fault: ClientFault, seconds: float) -> None:
        """Write what came instead of an answer."""
        with self._lock:
            call.end, call.seconds = fault, seconds
            self._write(
                "failed",
                call=call.number,
                kind=fault.kind,
                retry=fault.retry,
                may_cost=fault.may_cost,
                wait_s=fault.wait_s,
                usage=asdict(fault.usage),
                seconds=round(seconds, 3),
                message=fault.message,
                hint=fault.hint,
                raw=fault.raw,
            )

    def note(self, about: str, **facts: Any) -> None:
        """Keep what became of an answer, or anything else worth keeping."""
        with self._lock:
            self._write("note", about=about, **facts)

    def note_once(self, about: str, *, seconds: float | None = None, **facts: Any) -> None:
        """Keep something, unless the transcript says it already: a run begun again passes the same gates again."""
        told = json.loads(json.dumps({"about": about, **self._clean(facts)}, default=str))
        with self._lock:
            if any(all(n.get(name) == value for name, value in told.items()) for n in self._notes):
                return
            self._notes.append(told)
            timed = {} if seconds is None else {"seconds": round(seconds, 3)}
            self._write("note", **told, **timed)

    def _write(self, event: str, **fields: Any) -> None:
        """Add a line, whole and on the disk, or none."""
        entry = self._clean({"event": event, "date": self._now(), **fields})
        text = json.dumps(entry, ensure_ascii=False, default=str)
        # NOTE: half of a surrogate pair is no UTF-8; its escape is what JSON writes for it.
        data = memoryview(text.encode("utf-8", "backslashreplace") + b"\n")
        while data:
            data = data[os.write(self._file, data) :]
        os.fsync(self._file)
