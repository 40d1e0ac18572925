"""A candidate of which nothing is known but its declarations: tensors, sizes and scalars by name.

`Program` runs checked TL on the CPU. Not here: a bundle's kernels on a GPU (plain_bundle.py), what a candidate is
compared with (function.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, Protocol

import numpy as np

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge.candidate import digest_of, run_kernels
from qimeng_attention.judge.plain_families import Declared, scalar_values, sizes_to_try
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import integer
from qimeng_attention.tl.numerics import FLOAT_TYPES, Array, unit_roundoff
from qimeng_attention.tl.types import Checked, TensorType


class Plain(Protocol):
    """Anything that can be judged by a function alone."""

    name: str
    digest: str
    where: Literal["cpu", "gpu"]
    inputs: Mapping[str, str]  # types by name
    outputs: Mapping[str, str]  # types by name
    fixed: Mapping[str, int]  # sizes that the text gives a value
    narrowest: str  # type of what it declares
    failures: int | None  # cases that fail before the rest is left out; None: none is

    def sizes_to_try(self) -> list[dict[str, int]]:
        """Give values of the run-time sizes."""

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Give the shape of each tensor."""

    def scalars(self, random: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, float]:
        """Draw a value for each scalar that its declaration admits."""

    def run(
        self, number: int, sizes: Mapping[str, int], tensors: Mapping[str, Array], scalars: Mapping[str, float]
    ) -> dict[str, Array]:
        """Give the outputs of a case by name; elements never written hold NaN.

        Raises:
            Stopped: it gave none.
        """


class Program:
    """Checked TL: a kernel, or kernels that run in order."""

    where: Literal["cpu", "gpu"] = "cpu"
    failures: int | None = None

    def __init__(self, kernels: Sequence[Checked]) -> None:
        self.kernels = tuple(kernels)
        self.name, self.digest = kernels[0].kernel.name, digest_of(kernels)
        self.fixed: Mapping[str, int] = kernels[0].fixed
        self._tensors = {n: t for k in kernels for n, t in k.tensors.items()}
        made = [n for k in kernels for n in k.outputs]
        read = list(dict.fromkeys(n for k in kernels for n in k.inputs))
        self.inputs: Mapping[str, str] = {n: self._tensors[n].dtype for n in read if n not in made}
        given = [n for n in dict.fromkeys(made) if n not in read or len(kernels) == 1]
        self.outputs: Mapping[str, str] = {n: self._tensors[n].dtype for n in given}
        self.narrowest = narrowest_of(kernels)

    def sizes_to_try(self) -> list[dict[str, int]]:
        """Choose lengths around the tiles."""
        return sizes_to_try(self.kernels)

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Give the shape of each tensor."""
        return {n: shape_of(t, {**self.fixed, **sizes}) for n, t in self._tensors.items()}

    def scalars(self, random: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, float]:
        """Draw a value for each scalar that its declaration admits."""
        declared: dict[str, s.Scalar] = {n: x for k in self.kernels for n, x in k.scalars.items()}
        known = {**self.fixed, **sizes}
        return scalar_values(random, [Declared(n, x.op or "", _bound(x, known)) for n, x in declared.items()])

    def run(
        self, number: int, sizes: Mapping[str, int], tensors: Mapping[str, Array], scalars: Mapping[str, float]
    ) -> dict[str, Array]:
        """Interpret the kernels; roles interleave in another order in each case."""
        return run_kernels(self.kernels, sizes, tensors, scalars, number)


def narrowest_of(kernels: Sequence[Checked]) -> str:
    """Give the floating type with the fewest digits among a program's tensors and tiles."""
    types = [t.dtype for k in kernels for t in k.tensors.values() if t.dtype in FLOAT_TYPES]
    types += [t.dtype for k in kernels for t in k.tiles.values() if t.dtype in FLOAT_TYPES]
    return max(types, key=unit_roundoff, default="f32")


def shape_of(tensor: TensorType, sizes: Mapping[str, int]) -> tuple[int, ...]:
    """Give the shape of a tensor of a program.

    Raises:
        JudgeError: it has none for these sizes.
    """
    try:
        return tuple(integer(d, dict(sizes)) for d in tensor.dims)
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise no_shape(tensor.name, sizes, error) from None


def no_shape(name: str, sizes: Mapping[str, int], error: Exception) -> JudgeError:
    """Say that a tensor has no shape for some sizes."""
    return JudgeError(f"{name} has no shape for {dict(sizes)}: {error}", hint="give sizes for which it has one")


def _bound(declared: s.Scalar, sizes: Mapping[str, int]) -> float:
    if declared.bound is None:
        return 0.0
    if isinstance(declared.bound, s.Num):
        return float(declared.bound.value)
    try:
        return float(integer(declared.bound, dict(sizes)))
    except (KeyError, ValueError, ZeroDivisionError):
        return 0.0
