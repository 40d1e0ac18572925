"""A compilation in a process of its own, with a limit of time and of memory: for sources that nobody of ours wrote.

A few lines of templates can keep a compiler busy for hours, and NVRTC cannot be stopped from within its own process.

Not here: what happens in that process (apart_worker.py), which sources need it (workflow/cuda.py).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

from qimeng_attention.build.apart_worker import ANSWER, ASKED, CUBIN
from qimeng_attention.build.nvrtc import CompileError, CompileOptions, CompileResult
from qimeng_attention.build.toolchain import CUTLASS_VARIABLE, INSTALL, Toolchain
from qimeng_attention.errors import Diagnostic, EnvironmentMissing, Span

TIMEOUT_S = 120.0  # of the compiler's own time, so that a busy machine refuses nothing; a kernel of CuTe takes about 10
PATIENCE = 4  # times as long may pass on a clock
MEMORY_BYTES = 16 << 30  # of address space, of which NVRTC reserves more than it uses
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", CUTLASS_VARIABLE)  # of the environment
SLOW = "took too long"
_WORDS = "errors.txt"  # what the process says beside its answer
_LESS = "nest templates less deeply, unroll less, and compute tables at run time"


def compile_apart(
    source: str,
    *,
    arch: str,
    name: str,
    toolchain: Toolchain,
    headers: Mapping[str, str] | None = None,
    options: CompileOptions | None = None,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int = MEMORY_BYTES,
) -> CompileResult:
    """Compile as `compile_cubin` does, elsewhere.

    Raises:
        CompileError: NVRTC or ptxas refused, took too long or too much memory, or crashed.
        EnvironmentMissing: a part of the tool chain is not there, or the process cannot be started.
    """
    asked = {
        "source": source,
        "arch": arch,
        "name": name,
        "headers": dict(headers or {}),
        "options": asdict(options or CompileOptions()),
        "includes": [str(p) for p in toolchain.includes],
        "memory_bytes": memory_bytes,
        "cpu_s": ceil(timeout_s),
    }
    with tempfile.TemporaryDirectory(prefix="qimeng-compile-") as place:
        folder = Path(place)
        (folder / ASKED).write_text(json.dumps(asked))  # escapes what is no text: nvrtc.py names it
        how = _run([sys.executable, "-m", "qimeng_attention.build.apart_worker", place], folder, PATIENCE * timeout_s)
        if how == SLOW:
            raise CompileError(f"NVRTC was not done with {name}.cu after {timeout_s:g} s", hint=_LESS, log=how)
        if how:
            raise CompileError(f"NVRTC {how} on {name}.cu", hint=_LESS, log=how)
        answer = json.loads((folder / ANSWER).read_text())
        if answer["kind"] == "compiled":
            return CompileResult((folder / CUBIN).read_bytes(), answer["log"], answer["seconds"])
    raise _error(answer)


def _run(command: Sequence[str], folder: Path, timeout_s: float) -> str:
    """Run a command to its end, or kill it with whatever it started; say how it ended, where it gave no answer."""
    kept = {n: os.environ[n] for n in KEPT if n in os.environ}
    kept["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    with (folder / _WORDS).open("wb") as words:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=words, stderr=words, env=kept, start_new_session=True
        )
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            _kill(process)
            return SLOW
        except BaseException:
            _kill(process)
            raise
    if code == -signal.SIGXCPU:
        return SLOW
    lines = (folder / _WORDS).read_text("utf-8", "replace").strip().splitlines()
    if not code and (folder / ANSWER).is_file():
        return ""
    if any("bad_alloc" in line or "MemoryError" in line or "out of memory" in line for line in lines):
        return "needs more memory than it may take"
    if code > 0:  # Python's: no source makes it
        last = lines[-1] if lines else "no reason given"
        raise EnvironmentMissing(f"the compiler's process cannot run: {last[:300]}", hint=f"run: {INSTALL}")
    return f"crashed ({signal.Signals(-code).name if code else 'without an answer'})"


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _error(answer: Mapping[str, Any]) -> CompileError | EnvironmentMissing:
    if answer["kind"] == "missing":
        return EnvironmentMissing(answer["message"], hint=answer["hint"])
    found = [Diagnostic(d["code"], d["message"], d["hint"], Span(d["line"])) for d in answer["diagnostics"]]
    return CompileError(answer["message"], hint=answer["hint"], log=answer["log"], diagnostics=found)
