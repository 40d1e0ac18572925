"""Calling a function that a person wrote, once: its arrays or tensors in, plain arrays out, and what it does wrong.

    framework = framework_of(function)              # "torch" if its file uses PyTorch, else "numpy"
    found = call(function, framework, {"q": q, ...})  # {"Out": array} by its names, or {"0": array} by place

Runs in the process of whoever calls; a `Wrong` says what the function does. Not here: a process of its own
(reference_process.py), what its outputs should be (user_function.py, own_function.py).
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.tl.numerics import Array

Function: TypeAlias = Callable[..., Any]
FRAMEWORKS = ("auto", "numpy", "torch")
MOST_WORDS = 200  # characters of an error that are told


class Wrong(Exception):
    """What a person's function does wrong, and what to do."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.what, self.hint = what, hint


def framework_of(function: Function) -> str:
    """Tell what a function takes: PyTorch tensors if its module names anything of PyTorch, else NumPy arrays."""
    return "torch" if any(map(_of_torch, _names_around(function))) else "numpy"


def _names_around(function: Function) -> list[Any]:
    plain = inspect.unwrap(function)
    if hasattr(plain, "__globals__"):
        return list(plain.__globals__.values())
    home = sys.modules.get(type(plain).__module__)  # of an object that can be called, as a torch.nn.Module
    return [*type(plain).__mro__, *(vars(home).values() if home is not None else ())]


def _of_torch(value: Any) -> bool:
    name = value.__name__ if isinstance(value, ModuleType) else getattr(value, "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] == "torch"


def call(function: Function, framework: str, given: Mapping[str, Any]) -> dict[str, Array]:
    """Call a function on copies of what is given.

    Raises:
        Wrong: it raises, exits, changes its inputs, or gives something that is no set of arrays.
        EnvironmentMissing: it takes PyTorch tensors, and there is no PyTorch.
    """
    torch = _torch() if framework == "torch" else None
    arguments = {name: _argument(value, torch) for name, value in given.items()}
    try:
        with np.errstate(all="ignore"):
            if torch is None:
                result = function(**arguments)
            else:
                with torch.no_grad():
                    result = function(**arguments)
    except SystemExit as error:
        raise Wrong(f"exits the process (exit code {error.code})", "let it return, or raise an error") from None
    except MemoryError:
        raise Wrong(
            "needs more memory than it may have", "let it compute with less, or judge on smaller sizes"
        ) from None
    except Exception as error:  # anything may go wrong in a person's function
        raise Wrong(f"raises {told(error)}", "let it handle these sizes, or judge on others") from error
    for name, value in arguments.items():
        if isinstance(given[name], np.ndarray) and not _same(np.asarray(value), given[name]):
            raise Wrong(f"changes its input {name}", "let it work on a copy")
    return {name: _array(value, name) for name, value in _items(result)}


def told(error: BaseException) -> str:
    """Give an error in a line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:MOST_WORDS]}" if text else type(error).__name__


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing(
            "the reference takes PyTorch tensors, and PyTorch is not installed",
            hint="`make pytorch` installs a CPU build of it, pip install 'qimeng-attention[gpu]' one for GPUs",
        ) from None
    return torch


def _argument(value: Any, torch: Any) -> Any:
    if not isinstance(value, np.ndarray):
        return value
    return np.array(value) if torch is None else torch.from_numpy(np.array(value))


def _same(a: Array, b: Array) -> bool:
    return a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f")


def _items(result: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(result, Mapping):
        for name, value in result.items():
            yield str(name), value
    elif isinstance(result, tuple | list):
        for place, value in enumerate(result):
            yield str(place), value
    else:
        yield "0", result


def _array(value: Any, name: str) -> Array:
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        found = np.asarray(value)
    except Exception:  # tensors of types that NumPy lacks, objects that refuse
        found = np.asarray(None)
    if found.dtype.kind not in "fiubc":
        which = "" if name == "0" else f" as {name}"
        raise Wrong(f"gives a {type(value).__name__}{which}, expected an array", "return arrays, or tensors in float64")
    return found
