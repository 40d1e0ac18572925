"""A process beside the server that does one job after the other: `python -m qimeng_attention.integrations.mcp.worker`.

Each line on standard input is a job (JSON); lines on standard output tell how far it is, and the last one its answer.
Whatever libraries print goes to standard error. When standard input ends the server is gone: so is this process, and
whatever a job had started.

Not here: who asks (jobs.py), what is done (work.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, TextIO

from qimeng_attention.integrations.mcp.answers import failure, success

GRACE_S = 3.0  # for a job to end what it started
MEMORY_BYTES = 8 << 30  # that a quick stage may allocate: sizes are a client's, and the machine is not its alone
QUICK = ("understand", "check", "interpret", "schedule", "translate", "show")
_EVERY_S = 0.2  # at most so often it is said how far a job is


def main() -> None:
    """Do jobs until standard input ends."""
    answers, requests = os.fdopen(os.dup(1), "w", encoding="utf-8"), os.fdopen(os.dup(0), encoding="utf-8")
    os.dup2(2, 1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # what a job starts has nothing to read
    signal.signal(signal.SIGTERM, _leave)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    waiting: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(requests, waiting), daemon=True).start()
    while True:
        request = json.loads(waiting.get())
        _tell(answers, {"taken": request["tool"]})
        _tell(answers, {"answer": _done(request, answers)})


def _listen(requests: TextIO, waiting: queue.SimpleQueue[str]) -> None:
    for line in requests:
        waiting.put(line)
    threading.Thread(target=_end_hard, daemon=True).start()
    os.kill(os.getpid(), signal.SIGTERM)


def _end_hard() -> None:
    """End although the main thread is in a library's code and hears no signal."""
    threading.Event().wait(GRACE_S)
    os._exit(1)


def _leave(number: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)  # unwinds: a judge or a reference that was started is ended


def _done(request: dict[str, Any], answers: TextIO) -> dict[str, Any]:
    said = 0.0

    def say(done: int, total: int, name: str) -> None:
        nonlocal said
        now = time.monotonic()
        if now - said >= _EVERY_S or done == total:
            said = now
            _tell(answers, {"progress": {"done": done, "total": total, "what": str(name)}})

    try:
        from qimeng_attention.integrations.mcp.work import do

        with _limited() if request["tool"] in QUICK else contextlib.nullcontext():
            return success(do(request["tool"], request["arguments"], say))
    except Exception as error:  # a job may fail in any way, and the answer must say how
        return failure(error)


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Bound what is allocated meanwhile, where the system knows such a limit."""
    try:
        import resource
    except ImportError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bounds = [limit for limit in (MEMORY_BYTES, soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_DATA, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


def _tell(answers: TextIO, fields: dict[str, Any]) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
