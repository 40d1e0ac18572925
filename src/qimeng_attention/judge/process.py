"""A process beside the judge's own, in which kernels run: started when first asked, killed when it hangs.

It may serve one bundle after the other: starting PyTorch and CUDA takes longer than judging a kernel at a few shapes.
After an error or damage it is ended, and the next request starts another.

Not here: what happens in it (worker.py), what its answers mean (device.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

TIMEOUT_S = 60.0  # of one launch, its transfers and, the first time, the start of CUDA
WORKER = (sys.executable, "-m", "qimeng_attention.judge.worker")
ERRORS = "errors.txt"  # in the shared folder: what the process says beside its answers
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "PYTHONPATH")  # of the environment; keys and tokens stay behind
LONGEST_LINE = 16 << 20  # bytes of an answer: arrays travel as files
_READ_BYTES = 4096  # of the end of what a process says beside its answers
KEPT_PREFIXES = ("CUDA_", "NVIDIA_", "LD_")


def read_line(process: subprocess.Popen[bytes], seconds: float) -> bytes | None:
    """Read a line of a process; None if none came in time or it has no end, an unfinished one if the process ended."""
    assert process.stdout is not None
    line, deadline = b"", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not line.endswith(b"\n"):
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            piece = os.read(process.stdout.fileno(), 1 << 16)
            if not piece:
                return line
            line += piece
            if len(line) > LONGEST_LINE:
                return None
    return line


def how_it_ended(process: subprocess.Popen[bytes], errors: Path) -> str:
    """Say how a process ended, with the last line that it wrote to `errors`."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(timeout=5)
    code = process.poll()
    lines = _end_of(errors).strip().splitlines()
    how = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit code {code}"
    return how + (f": {lines[-1][:300]}" if lines else "")


def _end_of(errors: Path) -> str:
    with errors.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _READ_BYTES))
        return file.read().decode("utf-8", "replace")


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process and whatever it started."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            with contextlib.suppress(OSError):
                stream.close()


class Hung(Exception):
    """No answer came in time; the process was killed."""


class Process:
    """A process that answers a line of JSON with a line of JSON, and shares a folder of files with this one."""

    def __init__(self, command: Sequence[str] = WORKER, timeout_s: float = TIMEOUT_S) -> None:
        self._temporary = tempfile.TemporaryDirectory(prefix="qimeng-judge-")
        self.folder = Path(self._temporary.name)
        self._command, self._timeout_s = [*command, self._temporary.name], timeout_s
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()
        self._temporary.cleanup()

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Give the answer to a request; `error` in it says how the process ended, if it did.

        Raises:
            Hung: no answer within the time of one launch.
        """
        if self._process is None:
            self._process = self._started()
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return {"error": self._ended()}
        line = read_line(self._process, self._timeout_s)
        if line is None:
            self.stop()
            raise Hung(f"no answer within {self._timeout_s:g} s: the kernel hangs, its process was killed")
        if not line.endswith(b"\n"):
            return {"error": self._ended()}
        return json.loads(line)  # type: ignore[no-any-return]

    def stop(self) -> None:
        """End the other process and whatever it started."""
        if self._process is not None:
            kill(self._process)
            self._process = None

    def _ended(self) -> str:
        assert self._process is not None
        return f"its process ended with {how_it_ended(self._process, self.folder / ERRORS)}"

    def _started(self) -> subprocess.Popen[bytes]:
        kept = {n: v for n, v in os.environ.items() if n in KEPT or n.startswith(KEPT_PREFIXES)}
        kept["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        with (self.folder / ERRORS).open("wb") as errors:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=kept,
                start_new_session=True,
            )
