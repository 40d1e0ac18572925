"""A tensor and a library of functions that know as much of tracing as PyTorch's do, for tests without PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np

from qimeng_attention.integrations.trace import traced


class Tensor:
    """A NumPy array that hands traced indices to their trace."""

    def __init__(self, data: Any, dtype: str) -> None:
        self.data, self.dtype = np.asarray(data), f"stand_in.{dtype}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.data.shape

    def stride(self) -> tuple[int, ...]:
        return tuple(n // self.data.itemsize for n in self.data.strides)

    def reshape(self, *shape: int) -> Tensor:
        return Tensor(self.data.reshape(shape), self.dtype.rpartition(".")[2])

    def __getitem__(self, index: Any) -> Any:
        found = next(traced(index if isinstance(index, tuple) else (index,)), None)
        return self.data[index] if found is None else found.trace.element(self, index)


class Functions:
    """`stand_in.where(...)`, as one would call a library's functions."""

    def __getattr__(self, name: str) -> Any:
        def function(*args: Any, **kwargs: Any) -> Any:
            return next(traced(args)).trace.function(name, args, kwargs)

        return function


stand_in = Functions()
