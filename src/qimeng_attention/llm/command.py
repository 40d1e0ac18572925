"""Any program that reads a prompt on its standard input and answers on its standard output.

It runs in a process group of its own, which is ended with it, whatever it started.

Not here: what the words of a command line mean (clients.py).
"""

from __future__ import annotations

import os
import selectors
import shlex
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from typing import IO

from qimeng_attention.llm.chat import Empty, Garbled, Misconfigured, Reply, Request, ServerFault, TimedOut

LONGEST_ANSWER = 8 << 20  # bytes; a program that prints without end is stopped there
KEPT_OF_STDERR = 4000  # bytes of its end


class CommandClient:
    """A program and its arguments, which no shell reads; `model` is who answers through it, where that is known."""

    def __init__(self, argv: Sequence[str], *, model: str = "") -> None:
        self.argv, self.name = tuple(argv), f"command:{shlex.join(argv)}"
        self._model = model or self.name

    def complete(self, request: Request) -> Reply:
        """Run the program.

        Raises:
            Misconfigured: it cannot be started.
            TimedOut: it did not end within the request's time.
            ServerFault: it ended with an exit code, or by a signal.
            Empty, Garbled: it answered nothing, no UTF-8, or without end.
        """
        began = time.monotonic()
        with tempfile.TemporaryFile() as errors:
            out = self._run(request, began + request.timeout_s, errors)
        try:
            text = out.decode("utf-8")
        except UnicodeDecodeError as e:
            raise Garbled(
                f"{self.argv[0]} answered something that is no UTF-8",
                hint="let it print UTF-8",
                raw=out.decode("utf-8", "backslashreplace"),
            ) from e
        if not text.strip():
            raise Empty(f"{self.argv[0]} answered nothing", hint="let it print its answer on standard output")
        return Reply(text, self._model, seconds=time.monotonic() - began)

    def _run(self, request: Request, deadline: float, errors: IO[bytes]) -> bytes:
        try:
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )
        except (OSError, ValueError) as e:
            raise Misconfigured(
                f"{self.argv[0]} cannot be started: {getattr(e, 'strerror', None) or e}",
                hint="name a program that exists and may be run",
            ) from e
        out = bytearray()
        try:
            if not _talk(process, request.rendered().encode("utf-8", "backslashreplace"), out, deadline):
                raise TimedOut(
                    f"{self.argv[0]} did not end within {request.timeout_s:g} s", hint="allow more time", raw=_text(out)
                )
            if len(out) > LONGEST_ANSWER:
                raise Garbled(
                    f"{self.argv[0]} answered more than {LONGEST_ANSWER >> 20} MiB",
                    hint="let it print its answer alone",
                    raw=_text(out[:KEPT_OF_STDERR]),
                )
            if not _ended(process.pid, deadline):
                raise TimedOut(
                    f"{self.argv[0]} answered, but did not end within {request.timeout_s:g} s",
                    hint="let it end after its answer",
                    raw=_text(out),
                )
        finally:
            code = _end(process)
        if code:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise ServerFault(
                f"{self.argv[0]} {how}",
                hint="run it by hand with a prompt on its standard input",
                raw=_text(out) + _tail(errors),
                returned=code,
            )
        return bytes(out)


def _talk(process: subprocess.Popen[bytes], prompt: bytes, out: bytearray, deadline: float) -> bool:
    """Write the prompt and read the answer at the same time; tell whether the program closed its output in time."""
    assert process.stdin is not None
    assert process.stdout is not None
    rest = memoryview(prompt)
    os.set_blocking(process.stdin.fileno(), False)
    with selectors.DefaultSelector() as ready:
        ready.register(process.stdout, selectors.EVENT_READ)
        ready.register(process.stdin, selectors.EVENT_WRITE)
        while (left := deadline - time.monotonic()) > 0:
            for key, _ in ready.select(left):
                if key.fileobj is process.stdout:
                    data = os.read(process.stdout.fileno(), 1 << 16)
                    out += data
                    if not data or len(out) > LONGEST_ANSWER:
                        return True
                    continue
                try:
                    rest = rest[os.write(process.stdin.fileno(), rest) :]
                except BlockingIOError:
                    continue
                except BrokenPipeError:  # it does not read to the end: its own affair
                    rest = rest[:0]
                if not rest:
                    ready.unregister(process.stdin)
                    process.stdin.close()
    return False


def _ended(pid: int, deadline: float) -> bool:
    """Wait for a program's end without taking its exit code, so that its number stays its own."""
    while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.002)
    return True


def _end(process: subprocess.Popen[bytes]) -> int:
    """End the program and everything in its group; give its exit code."""
    # SAFETY: the group is the program's own (a new session). Nobody has waited for the program yet, so its number,
    # which is the group's too, has not been given to another one.
    os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()
    return process.wait()


def _text(out: bytes | bytearray) -> str:
    return bytes(out).decode("utf-8", "backslashreplace")


def _tail(errors: IO[bytes]) -> str:
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - KEPT_OF_STDERR))
    words = _text(errors.read()).strip()
    return f"\n[standard error]\n{words}" if words else ""
