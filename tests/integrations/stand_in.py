"""A tensor and a library of functions that know as much of tracing as PyTorch's do, for tests without PyTorch.

`modules()` stands for PyTorch itself while a file that imports it is loaded: its functions write down traced values,
and compute those of `places`, NumPy arrays with the methods that callables use.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType, SimpleNamespace
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


class Places(np.ndarray):
    """An array with the methods of a tensor that callables use."""

    def abs(self) -> Any:
        return np.abs(self)

    def clamp(self, low: float, high: float) -> Any:
        return np.clip(self, low, high)


NUMPY: dict[str, Callable[..., Any]] = {
    "abs": np.abs, "clamp": np.clip, "exp2": np.exp2, "tanh": np.tanh, "where": np.where,
}  # fmt: skip


class Functions:
    """`stand_in.where(...)`, as one would call a library's functions."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def function(*args: Any, **kwargs: Any) -> Any:
            found = next(traced(args), None)
            return NUMPY[name](*args, **kwargs) if found is None else found.trace.function(name, args, kwargs)

        return function


stand_in = Functions()


def places(values: Any) -> Any:
    """Give an array that a callable takes for one number of each place."""
    return np.asarray(values).view(Places)


def _all_of(*masks: Any) -> Any:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        found = masks[0](b, h, q_idx, kv_idx)
        for other in masks[1:]:
            found = found & other(b, h, q_idx, kv_idx)
        return found

    return mask


def _any_of(*masks: Any) -> Any:
    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        found = masks[0](b, h, q_idx, kv_idx)
        for other in masks[1:]:
            found = found | other(b, h, q_idx, kv_idx)
        return found

    return mask


def modules() -> dict[str, Any]:
    """Give what stands for PyTorch's modules, by name."""
    torch = ModuleType("torch")
    torch.__getattr__ = lambda name: getattr(stand_in, name)  # type: ignore[method-assign]
    torch.tensor = lambda values, dtype, device: Tensor(values, dtype)  # type: ignore[attr-defined]
    torch.nn = SimpleNamespace(functional=stand_in)  # type: ignore[attr-defined]
    for name in ("float32", "bfloat16", "int32", "bool"):
        setattr(torch, name, name)
    masks = SimpleNamespace(and_masks=_all_of, or_masks=_any_of)
    return {"torch": torch, "torch.nn.attention.flex_attention": masks}
