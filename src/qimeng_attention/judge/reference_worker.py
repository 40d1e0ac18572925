"""Runs a person's reference function in a process of its own: `python -m qimeng_attention.judge.reference_worker
FILE FUNCTION FRAMEWORK MEMORY FOLDER`.

The first line on standard output describes the function; then each line on standard input is a request (JSON), and
each line on standard output its answer. Arrays travel as .npy files in FOLDER. What the function prints goes to
standard error.

Not here: who asks and who waits (reference_process.py).
"""

from __future__ import annotations

import contextlib
import difflib
import importlib.util
import inspect
import json
import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.judge.calling import Function, Wrong, call, framework_of, told
from qimeng_attention.judge.confinement import confine

MOST_FILE_BYTES = 1 << 30  # of what it writes: its outputs, and what it prints


def main() -> None:
    """Describe the function, then answer requests until standard input ends."""
    file, name, framework, memory, folder = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever the function prints goes to standard error
    requests: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(os.fdopen(os.dup(0)), requests), daemon=True).start()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # it has nothing to read
    _limit(int(memory))
    sys.argv[1:] = []
    confine(Path(folder))
    try:
        function = loaded(Path(file), name)
        framework = framework_of(function) if framework == "auto" else framework
        _answer(answers, described(function, framework))
    except Wrong as wrong:
        _answer(answers, {"wrong": wrong.what, "hint": wrong.hint})
        return
    while True:
        _answer(answers, _called(function, framework, json.loads(requests.get()), Path(folder)))


def _listen(source: TextIO, requests: queue.SimpleQueue[str]) -> None:
    """Take requests, and end with who asks: killed, it can end nothing itself, and a function may never return."""
    for line in source:
        requests.put(line)
    os._exit(0)


def _limit(memory: int) -> None:
    """Bound what the process may allocate, where the system knows such a limit."""
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        # NOTE: of data, not of addresses: libraries reserve far more addresses than they use.
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
        resource.setrlimit(resource.RLIMIT_FSIZE, (MOST_FILE_BYTES, MOST_FILE_BYTES))


def loaded(path: Path, name: str) -> Function:
    """Run a file and take a function from it.

    Raises:
        Wrong: the file fails, or has no such function.
    """
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise Wrong(f"{path.name} is no Python file", "write it as FILE.py:FUNCTION")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses and pickle look for it
    sys.path.insert(0, str(path.parent))  # as `python FILE.py` would find the modules beside it
    try:
        spec.loader.exec_module(module)
    except SystemExit as error:
        raise Wrong(
            f"{path.name} exits when it is loaded (exit code {error.code})", "guard it by __name__ == '__main__'"
        ) from None
    except Exception as error:  # anything may go wrong in a person's file
        hint = f"{sys.executable} {path} shows more"
        if isinstance(error, ModuleNotFoundError) and error.name:
            hint = f"install it beside qimeng: {sys.executable} -m pip install {error.name}"
            if error.name == "torch":
                hint = f"`make pytorch` installs a CPU build of it, {hint.partition(': ')[2]} one for GPUs"
        raise Wrong(f"{path.name} fails when it is loaded: {told(error)}", hint) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, f in vars(module).items() if inspect.isfunction(f)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"functions there: {', '.join(known) or 'none'}"
        raise Wrong(f"{path.name} has no function {name}", hint)
    return function  # type: ignore[no-any-return]


def described(function: Function, framework: str) -> dict[str, Any]:
    """Say what a function takes: each parameter's kind, and whether it has a default."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        name = getattr(function, "__name__", "the reference")
        raise Wrong(f"{name} has no signature", "give a plain Python function") from None
    taken = [{"name": p.name, "kind": p.kind.name, "default": p.default is not p.empty} for p in parameters]
    return {"parameters": taken, "framework": framework}


def _answer(answers: Any, fields: dict[str, Any]) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def _called(function: Function, framework: str, request: dict[str, Any], folder: Path) -> dict[str, Any]:
    given = dict(request["values"])
    given |= {name: np.load(folder / file, allow_pickle=False) for name, file in request["arrays"].items()}
    try:
        found = call(function, framework, given)
    except Wrong as wrong:
        return {"wrong": wrong.what, "hint": wrong.hint}
    except EnvironmentMissing as missing:
        return {"missing": missing.message, "hint": missing.hint}
    except MemoryError:
        return {"wrong": "needs more memory than it may have", "hint": "judge on smaller sizes"}
    files = {name: f"{number}.out.npy" for number, name in enumerate(found)}
    for name, file in files.items():
        np.save(folder / file, found[name], allow_pickle=False)
    return {"outputs": files}


if __name__ == "__main__":
    main()
