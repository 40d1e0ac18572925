"""A reference function under the names of a program: `q` for Q, `slopes` for Slopes, outputs by place for Out and Lse.

A function written beside a description takes `q, k, v` and gives `out`, or `(out, lse)`; one written for a program
takes its tensors' names. With this both serve an operator that no description covers.

Not here: how functions are called (reference_process.py), what they must give (user_function.py).
"""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.tl.numerics import Array

_OUTPUTS = {"0": "Out", "out": "Out", "1": "Lse", "lse": "Lse"}


class AsProgram(Reference):
    """Another reference, whose parameters and outputs have a program's names."""

    def __init__(self, function: Reference, tensors: Collection[str]) -> None:
        """Take a function, and the description's names of the tensors beside q, k and v."""
        parameters = function.__signature__.parameters
        own = [n for n in ("q", "k", "v", *tensors) if n in parameters and kernel_name(n) not in parameters]
        self._own = {kernel_name(n): n for n in own}
        new = {n: kernel_name(n) for n in own}
        signature = inspect.Signature([p.replace(name=new.get(p.name, p.name)) for p in parameters.values()])
        super().__init__(function.__name__, signature)
        self._function, self.framework, self.digest = function, function.framework, function.digest

    def __call__(self, **given: Any) -> dict[str, Array]:
        """Call it."""
        found = self._function(**{self._own.get(name, name): value for name, value in given.items()})
        if len(found) > 2:
            return found
        return {_OUTPUTS.get(name, name): value for name, value in found.items()}
