"""Compiles one source: `python -m qimeng_attention.build.apart_worker FOLDER`, started by apart.py."""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path
from typing import Any

from qimeng_attention.build.nvrtc import CompileError, CompileOptions, compile_cubin
from qimeng_attention.build.toolchain import Toolchain
from qimeng_attention.errors import EnvironmentMissing

ASKED, ANSWER, CUBIN = "asked.json", "answer.json", "kernel.cubin"  # in the folder


def main() -> None:
    """Compile what a folder asks for, and write into it what came of it."""
    folder = Path(sys.argv[1])
    asked = json.loads((folder / ASKED).read_text())
    most, seconds = asked.pop("memory_bytes"), asked.pop("cpu_s")
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 5))
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    includes = tuple(Path(p) for p in asked.pop("includes"))
    asked["toolchain"] = Toolchain("", "", "", "", includes, None, None)
    given = asked.pop("options")
    tuples = {n: tuple(v) for n, v in given.items() if isinstance(v, list)}
    try:
        result = compile_cubin(options=CompileOptions(**(given | tuples)), **asked)
    except CompileError as error:
        lines = [d.to_json() for d in error.diagnostics]
        answer = {"message": error.message, "hint": error.hint, "log": error.log, "diagnostics": lines}
        _write(folder, {"kind": "refused", **answer})
    except EnvironmentMissing as error:
        _write(folder, {"kind": "missing", "message": error.message, "hint": error.hint})
    else:
        (folder / CUBIN).write_bytes(result.cubin)
        _write(folder, {"kind": "compiled", "log": result.log, "seconds": result.seconds})


def _write(folder: Path, answer: dict[str, Any]) -> None:
    """Write the answer whole, or not at all."""
    (folder / "answer").write_text(json.dumps(answer))
    (folder / "answer").rename(folder / ANSWER)


if __name__ == "__main__":
    main()
