"""A reference function that a person wrote: loading it, calling it, and saying what it does wrong.

    def attention(Q, K, V, scale):     # arrays by tensor name, sizes and scalars by theirs: those it asks for
        ...
        return {"Out": out}            # outputs by name; a single output may come alone

Arrays are float64. Whatever the function does wrong is a JudgeError that names it.
Not here: what is done with its outputs (function.py).
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from qimeng_attention.errors import JudgeError
from qimeng_attention.tl.numerics import Array

Function: TypeAlias = Callable[..., Any]
MAGNITUDE = "_magnitude"  # `Out_magnitude` beside `Out`: the sum of |terms| of each element, if it is known


def load_function(place: str) -> Function:
    """Load `FILE.py:FUNCTION`.

    Raises:
        JudgeError: no such file or function, or the file fails when it is run.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if not file or not name.isidentifier() or not path.is_file():
        raise JudgeError(
            f"{place!r} names no function in a file", hint="write it as FILE.py:FUNCTION", field="reference"
        )
    spec = importlib.util.spec_from_file_location(f"reference_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise JudgeError(f"{file} is no Python file", hint="write it as FILE.py:FUNCTION", field="reference")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # anything may go wrong in a person's file
        raise JudgeError(
            f"{file} fails when it is loaded: {_told(error)}",
            hint="run it with python first",
            field="reference",
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [n for n, f in vars(module).items() if inspect.isfunction(f)]
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}?" if near else f"functions there: {', '.join(known) or 'none'}"
        raise JudgeError(f"{file} has no function {name}", hint=hint, field="reference")
    return function  # type: ignore[no-any-return]


@dataclass
class Asked:
    """A reference function, and what it asks for."""

    function: Function

    def __post_init__(self) -> None:
        self.name = getattr(self.function, "__name__", "the reference")
        try:
            self.parameters = dict(inspect.signature(self.function).parameters)
        except (TypeError, ValueError):
            raise JudgeError(
                f"{self.name} is no function with a signature", hint="give a plain Python function"
            ) from None
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def call(self, given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, Array]:
        """Call the function on copies of what it asks for, and check what it gives.

        Raises:
            JudgeError: it raises, changes its inputs, or gives something that is no set of outputs.
        """
        arguments = {
            n: np.array(given[n]) if isinstance(given[n], np.ndarray) else given[n] for n in self._wanted(given)
        }
        try:
            with np.errstate(all="ignore"):
                result = self.function(**arguments)
        except Exception as error:  # anything may go wrong in a person's function
            raise self._wrong(
                f"raises {_told(error)}", place, "let it handle these sizes, or judge on others"
            ) from error
        for name, value in arguments.items():
            if isinstance(value, np.ndarray) and not np.array_equal(value, given[name], equal_nan=True):
                raise self._wrong(f"changes its input {name}", place, "let it work on a copy")
        return self._outputs(result, shapes, place)

    def _wanted(self, given: Mapping[str, Any]) -> list[str]:
        if self.takes_all:
            return list(given)
        wanted = []
        for name, p in self.parameters.items():
            if name in given:
                wanted.append(name)
            elif p.default is p.empty:
                near = difflib.get_close_matches(name, given, n=1, cutoff=0.4)
                raise JudgeError(
                    f"{self.name} asks for {name}, which the program does not have",
                    hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(given)}",
                )
        return wanted

    def _outputs(self, result: Any, shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, Array]:
        if not isinstance(result, Mapping):
            if len(shapes) > 1:
                raise self._wrong(
                    f"gives {type(result).__name__}, expected outputs by name",
                    place,
                    "return {" + ", ".join(f"'{n}': ..." for n in shapes) + "}",
                )
            result = {next(iter(shapes)): result}
        found: dict[str, Array] = {}
        for name, shape in shapes.items():
            if name not in result:
                raise self._wrong(f"gives no {name}", place, f"it gives {', '.join(map(str, result)) or 'nothing'}")
            found[name] = self._array(name, result[name], shape, place)
            if name + MAGNITUDE in result:
                found[name + MAGNITUDE] = self._array(name + MAGNITUDE, result[name + MAGNITUDE], shape, place)
        return found

    def _array(self, name: str, value: Any, shape: tuple[int, ...], place: str) -> Array:
        try:
            array = np.array(value, np.float64)
        except (TypeError, ValueError):
            raise self._wrong(
                f"gives {name} as {type(value).__name__}, expected an array", place, "return NumPy arrays"
            ) from None
        if array.shape != shape:
            raise self._wrong(
                f"gives {name} of shape {array.shape}, expected {shape}",
                place,
                "compare it with the program's Allocate",
            )
        if np.isnan(array).any():
            at = [int(i) for i in np.argwhere(np.isnan(array))[0]]
            raise self._wrong(
                f"gives NaN at {name}{at}",
                place,
                "say what the operator gives there, 0 for a row without a key",
            )
        return array

    def _wrong(self, what: str, place: str, hint: str) -> JudgeError:
        return JudgeError(f"{self.name} {what} ({place})", hint=hint, field="reference")


def _told(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__
