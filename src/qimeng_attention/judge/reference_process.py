"""A person's reference function in a process of its own: no secrets, no more than so much time and memory.

    with open_reference("mine.py:attention") as function:  # or a function: then it runs in this process
        function(q=q, k=k, v=v)                            # {"0": array}, or outputs by the function's names

The process inherits none of the environment but what Python needs to start, has a folder of its own as home and
working directory, reads nothing, and is killed, with whatever it started, when a call takes too long. It writes no file
elsewhere, starts nothing and reaches no network (confinement.py). That is no sandbox: native code is not held, and the
file may read what its user may.

Not here: what happens in that process (reference_worker.py), what is asked of its outputs (own_function.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qimeng_attention.errors import EnvironmentMissing, JudgeError, QimengError
from qimeng_attention.judge.calling import FRAMEWORKS, Wrong, call, framework_of
from qimeng_attention.judge.process import ERRORS, how_it_ended, kill, read_line
from qimeng_attention.tl.numerics import Array

TIMEOUT_S = 60.0  # of one call, and of the start, which may import PyTorch
MEMORY_BYTES = 8 << 30
THREADS = 2  # of its libraries: tensors are small, and other work runs beside it
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "SYSTEMROOT")
HOME = "home"  # in the shared folder: where it may write
Place: TypeAlias = "str | Callable[..., Any]"


def open_reference(
    place: Place, framework: str = "auto", *, timeout_s: float = TIMEOUT_S, memory_bytes: int = MEMORY_BYTES
) -> Reference:
    """Make a function ready to be called.

    Args:
        place: `FILE.py:FUNCTION`, which gets a process of its own, or a function, which runs in this one.
        framework: what it takes, `numpy`, `torch`, or `auto`: PyTorch's tensors if its file uses PyTorch.
        timeout_s: of each call.
        memory_bytes: that its process may allocate.

    Raises:
        JudgeError: no such file or function, one that fails when it is loaded, or a framework that is none.
    """
    if framework not in FRAMEWORKS:
        raise JudgeError(
            f"there is no framework '{framework}'", hint=f"take one of {', '.join(FRAMEWORKS)}", field="framework"
        )
    if callable(place):
        return InThisProcess(place, framework)
    file, _, name = place.rpartition(":")
    if not file or not name.isidentifier() or not Path(file).is_file():
        raise JudgeError(
            f"{place!r} names no function in a file", hint="write it as FILE.py:FUNCTION", field="reference"
        )
    return InItsOwnProcess(Path(file), name, framework, timeout_s, memory_bytes)


class Reference(ABC):
    """A function to compare with; it has a signature, as Python's own functions do."""

    framework: str
    digest = ""  # of the file

    def __init__(self, name: str, signature: inspect.Signature) -> None:
        self.__name__, self.__signature__ = name, signature

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @abstractmethod
    def stop(self) -> None:
        """End what was started for it."""

    @abstractmethod
    def __call__(self, **given: Any) -> dict[str, Array]:
        """Call it; outputs come by their names, or by their places, `0` and on.

        Raises:
            JudgeError: it raises, changes its inputs, exits, hangs, or gives no arrays.
            EnvironmentMissing: it needs PyTorch, which is not there.
        """

    def wrong(self, what: str, hint: str) -> JudgeError:
        """Give the error that says what the function does."""
        return JudgeError(f"{self.__name__} {what}", hint=hint, field="reference")


class InThisProcess(Reference):
    """A function that a program of the user's hands over: it is the user's own process that it may harm."""

    def __init__(self, function: Callable[..., Any], framework: str) -> None:
        name = getattr(function, "__name__", type(function).__name__)
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):
            raise JudgeError(f"{name} has no signature", hint="give a plain Python function") from None
        super().__init__(name, signature)
        self._function = function
        self.framework = framework_of(function) if framework == "auto" else framework

    def stop(self) -> None:
        """Nothing was started."""

    def __call__(self, **given: Any) -> dict[str, Array]:
        """Call it."""
        try:
            return call(self._function, self.framework, given)
        except Wrong as wrong:
            raise self.wrong(wrong.what, wrong.hint) from wrong.__cause__


class InItsOwnProcess(Reference):
    """A function of a file."""

    def __init__(self, file: Path, name: str, framework: str, timeout_s: float, memory_bytes: int) -> None:
        self._timeout_s = timeout_s
        self._folder = tempfile.TemporaryDirectory(prefix="qimeng-reference-")
        self._command = [sys.executable, "-m", "qimeng_attention.judge.reference_worker"]
        self._command += [str(file.absolute()), name, framework, str(memory_bytes), self._folder.name]
        self._process: subprocess.Popen[bytes] | None = None
        self.digest = hashlib.sha256(file.read_bytes()).hexdigest()
        super().__init__(name, inspect.Signature())
        try:
            found = self._answer()
        except QimengError:
            self.stop()
            raise
        self.framework = found["framework"]
        self.__signature__ = _signature(found["parameters"])

    def __call__(self, **given: Any) -> dict[str, Array]:
        """Call it there."""
        folder = Path(self._folder.name)
        arrays = {name: value for name, value in given.items() if isinstance(value, np.ndarray)}
        files = {name: f"{number}.in.npy" for number, name in enumerate(arrays)}
        for name, file in files.items():
            np.save(folder / file, arrays[name], allow_pickle=False)
        values = {name: value for name, value in given.items() if name not in arrays}
        answer = self._answer({"arrays": files, "values": values})
        try:
            return {str(name): np.load(folder / file, allow_pickle=False) for name, file in _outputs(answer)}
        except (OSError, ValueError, EOFError, MemoryError):
            raise self.wrong("gives files that hold no arrays", "let it leave its process's files alone") from None

    def stop(self) -> None:
        """End the process and whatever it started."""
        self._kill()
        self._folder.cleanup()

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            kill(process)

    # -------------------------------------------------------------- the other process
    def _answer(self, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Ask for something, or wait for the description that comes first."""
        if self._process is None:
            self._process = self._started()
            if request is not None:  # a new process describes itself first
                self._answer()
        assert self._process.stdin is not None
        if request is not None:
            with contextlib.suppress(OSError):  # a process that has ended is met below
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
        line = read_line(self._process, self._timeout_s)
        if line is None:
            self._kill()
            raise self.wrong(
                f"gives nothing within {self._timeout_s:g} s", "it hangs, or is too slow: its process was killed"
            )
        if not line.endswith(b"\n"):
            raise self.wrong(f"ends its process: {self._ended()}", "let it return, and keep what it needs small")
        answer = _read(line)
        if answer is None:
            self._kill()
            raise self.wrong("answers something that makes no sense", "let it leave its process's files alone")
        if "missing" in answer:
            raise EnvironmentMissing(str(answer["missing"]), hint=str(answer.get("hint", "")))
        if "wrong" in answer and request is None:  # the file, not the function
            raise JudgeError(str(answer["wrong"]), hint=str(answer.get("hint", "")), field="reference")
        if "wrong" in answer:
            raise self.wrong(str(answer["wrong"]), str(answer.get("hint", "")))
        return answer

    def _ended(self) -> str:
        assert self._process is not None
        how = how_it_ended(self._process, Path(self._folder.name) / ERRORS)
        self._kill()
        return how

    def _started(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name in KEPT}
        kept["PYTHONPATH"] = os.pathsep.join(str(Path(p).absolute()) for p in sys.path if p)
        home = Path(self._folder.name) / HOME
        home.mkdir(exist_ok=True)
        kept |= {"HOME": str(home), "TMPDIR": str(home)}
        kept |= dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(THREADS))
        with (Path(self._folder.name) / ERRORS).open("wb") as errors:
            return subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=kept,
                cwd=home,
                start_new_session=True,
            )


def _read(line: bytes) -> dict[str, Any] | None:
    """Read an answer; None where it is none: a function that looks for the way out of its process may write there."""
    try:
        answer = json.loads(line)
    except (ValueError, RecursionError):
        return None
    known = isinstance(answer, dict) and answer.keys() & {"missing", "wrong", "parameters", "outputs"}
    return answer if known else None


def _outputs(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Give the files of outputs, by name.

    Raises:
        ValueError: one is not in the shared folder.
    """
    files = answer.get("outputs")
    if not isinstance(files, dict) or any(not re.fullmatch(r"\d+\.out\.npy", str(f)) for f in files.values()):
        raise ValueError("no files of outputs")
    return list(files.items())


_KINDS = {
    kind.name: kind
    for kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.VAR_POSITIONAL,
        inspect.Parameter.KEYWORD_ONLY,
        inspect.Parameter.VAR_KEYWORD,
    )
}


def _signature(parameters: list[dict[str, Any]]) -> inspect.Signature:
    none = inspect.Parameter.empty
    made = [inspect.Parameter(p["name"], _KINDS[p["kind"]], default=None if p["default"] else none) for p in parameters]
    return inspect.Signature(made)
