"""NVRTC in a process of its own, for sources that nobody vouches for: no more than so much time and memory.

A few lines of macros stand for more text than a machine holds, and no option of the compiler bounds it. The process
inherits none of the environment but what Python and the compiler need to start.

Not here: compiling itself (nvrtc.py), which sources are compiled so (workflow/stages.py).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from qimeng_attention.build.nvrtc import CompileError, CompileOptions, CompileResult, compile_cubin
from qimeng_attention.build.toolchain import Toolchain
from qimeng_attention.errors import Diagnostic, EnvironmentMissing, Span

TIMEOUT_S = 120.0  # a hundred times what a kernel takes
MEMORY_BYTES = 8 << 30
KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")
KEPT_PREFIXES = ("CUDA_", "NVIDIA_")
_HINT = "write less: macros and templates grow with each level"


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
    """Compile as `compile_cubin` does.

    Raises:
        CompileError: as there; also where the compiler takes too long or too much.
        EnvironmentMissing: a part of the tool chain is not there.
    """
    asked = {
        "source": source,
        "arch": arch,
        "name": name,
        "toolchain": {**asdict(toolchain), "includes": [str(folder) for folder in toolchain.includes]},
        "headers": dict(headers or {}),
        "options": None if options is None else asdict(options),
        "memory_bytes": memory_bytes,
    }
    answer = _answer(json.dumps(asked, default=str).encode(), timeout_s)
    if "missing" in answer:
        raise EnvironmentMissing(answer["missing"], hint=answer["hint"])
    if "refused" in answer:
        found = [Diagnostic(d["code"], d["message"], d["hint"], Span(*d["span"])) for d in answer["diagnostics"]]
        raise CompileError(answer["refused"], hint=answer["hint"], log=answer["log"], diagnostics=found)
    return CompileResult(base64.b64decode(answer["cubin"]), answer["log"], answer["seconds"])


def _answer(asked: bytes, timeout_s: float) -> dict[str, Any]:
    kept = {n: v for n, v in os.environ.items() if n in KEPT or n.startswith(KEPT_PREFIXES)}
    kept["PYTHONPATH"] = os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)
    with subprocess.Popen(
        [sys.executable, "-m", "qimeng_attention.build.apart"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=kept,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(asked, timeout_s)
        except subprocess.TimeoutExpired:
            raise CompileError(f"the compiler comes to no end within {timeout_s:g} s", hint=_HINT) from None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
    try:
        answer = json.loads(said)
    except ValueError:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"exit code {process.returncode}"
        raise CompileError(f"the compiler ends with {how}, or needs too much memory", hint=_HINT) from None
    assert isinstance(answer, dict)
    return answer


def main() -> None:
    """Compile what standard input asks for, and say on standard output what came of it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is no answer
    asked = json.load(sys.stdin)
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_DATA, (asked["memory_bytes"], asked["memory_bytes"]))
    json.dump(_compiled(asked), answers)
    answers.flush()


def _compiled(asked: dict[str, Any]) -> dict[str, Any]:
    tools, options = asked["toolchain"], asked["options"]
    tools["includes"] = tuple(Path(folder) for folder in tools["includes"])
    if options is not None:
        fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in options.items()}
        options = CompileOptions(**fields)
    given: dict[str, Any] = {"arch": asked["arch"], "name": asked["name"], "headers": asked["headers"]}
    try:
        made = compile_cubin(asked["source"], toolchain=Toolchain(**tools), options=options, **given)
    except CompileError as error:
        found = [
            {"code": d.code, "message": d.message, "hint": d.hint, "span": [*asdict(d.span).values()]}
            for d in error.diagnostics
        ]
        return {"refused": error.message, "hint": error.hint, "log": error.log, "diagnostics": found}
    except EnvironmentMissing as missing:
        return {"missing": missing.message, "hint": missing.hint}
    return {"cubin": base64.b64encode(made.cubin).decode(), "log": made.log, "seconds": made.seconds}


if __name__ == "__main__":
    main()
