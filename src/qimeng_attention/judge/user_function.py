"""A reference function for an operator that no description covers: what it is asked, and what it must give.

    def attention(Q, K, V, scale):     # arrays by tensor name, sizes and scalars by theirs: those it asks for
        ...
        return {"Out": out}            # outputs by name; a single output may come alone

Arrays are float64. Whatever the function does wrong is a JudgeError that names it. A function that was written beside a
description serves too: its `q` is the program's Q, its `slopes` Slopes, and `out`, or `(out, lse)`, are Out and Lse.
Not here: how it is called (calling.py, reference_process.py), what is done with its outputs (function.py), functions
beside a description (own_function.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.tl.numerics import Array

MAGNITUDE = "_magnitude"  # `Out_magnitude` beside `Out`: the sum of |terms| of each element, if it is known


_FACE = ("Out", "Lse")  # outputs of attention: a description's function gives them by place, or without capitals
_NAMES = {"0": "Out", "out": "Out", "1": "Lse", "lse": "Lse"}


@dataclass
class Asked:
    """A reference function, and what it asks for."""

    function: Reference

    def __post_init__(self) -> None:
        self.name = self.function.__name__
        self.parameters = dict(self.function.__signature__.parameters)
        self.takes_all = any(p.kind is p.VAR_KEYWORD for p in self.parameters.values())

    def call(self, given: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], place: str) -> dict[str, Array]:
        """Call the function on what it asks for, and check what it gives.

        Raises:
            JudgeError: it raises, changes its inputs, or gives something that is no set of outputs.
        """
        try:
            result = self.function(**{name: given[of] for name, of in self._wanted(given).items()})
        except JudgeError as error:
            raise JudgeError(f"{error.message} ({place})", hint=error.hint, field="reference") from error.__cause__
        return self._outputs(result, shapes, place)

    def _wanted(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Give the program's name of each argument that the function takes."""
        if self.takes_all:
            return {name: name for name in given}
        wanted = {}
        for name, p in self.parameters.items():
            if name in given:
                wanted[name] = name
            elif kernel_name(name) in given and kernel_name(name) not in self.parameters:
                wanted[name] = kernel_name(name)
            elif p.default is p.empty and p.kind is not p.VAR_POSITIONAL:
                near = difflib.get_close_matches(name, given, n=1, cutoff=0.4)
                raise JudgeError(
                    f"{self.name} asks for {name}, which the program does not have",
                    hint=f"did you mean {near[0]}?" if near else f"it has {', '.join(given)}",
                )
        return wanted

    def _outputs(
        self, result: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], place: str
    ) -> dict[str, Array]:
        if set(shapes) <= set(_FACE) and len(result) <= len(_FACE):
            result = {_NAMES.get(name, name): value for name, value in result.items()}
        if "0" in result:  # outputs without a name
            if len(shapes) > 1 or len(result) > 1:
                names = ", ".join(f"'{n}': ..." for n in shapes)
                raise self._wrong(f"gives {len(result)} array(s) without a name", place, f"return {{{names}}}")
            result = {next(iter(shapes)): result["0"]}
        found: dict[str, Array] = {}
        for name, shape in shapes.items():
            if name not in result:
                raise self._wrong(f"gives no {name}", place, f"it gives {', '.join(result) or 'nothing'}")
            found[name] = self._array(name, result[name], shape, place)
            if name + MAGNITUDE in result:
                found[name + MAGNITUDE] = self._array(name + MAGNITUDE, result[name + MAGNITUDE], shape, place)
        return found

    def _array(self, name: str, value: Array, shape: tuple[int, ...], place: str) -> Array:
        if value.dtype.kind == "c":
            raise self._wrong(f"gives {name} in {value.dtype}", place, "return real numbers")
        array = np.asarray(value, np.float64)
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
