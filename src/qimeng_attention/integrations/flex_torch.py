"""PyTorch's part in tracing: every function of a callable passes through here, whatever it is called on.

Functions of traced values go to the trace; what a callable computes of tensors alone is computed. Importing this
module imports PyTorch.

Not here: what the functions mean (functions.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from qimeng_attention.integrations.trace import Trace, traced

_TYPES = {"float": torch.float32, "int": torch.int32, "bool": torch.bool}
_ATTRIBUTES = {"device": torch.device("cpu"), "layout": torch.strided}
_RANDOM = frozenset(
    {
        "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "multinomial",
        "normal", "poisson", "dropout", "alpha_dropout", "feature_dropout",
    }
)  # fmt: skip


def is_tensor(x: Any) -> bool:
    """Tell whether something is a tensor."""
    return isinstance(x, torch.Tensor)


class Tracing(TorchFunctionMode):  # type: ignore[misc]
    """While it is entered, a trace sees every function of PyTorch."""

    def __init__(self, trace: Trace) -> None:
        """Take part in a trace."""
        super().__init__()
        self._trace = trace
        self._made: dict[int, Any] = {}  # tensors that the callable made of nothing that it captured
        trace.constant_of, trace.attribute, trace.least_of = self._constant, _attribute, _least

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write a function down, or compute it where nothing traced takes part."""
        given = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if any(True for _ in traced((args, given))):
            return self._trace.function(name, args, given)
        if name.rstrip("_") in _RANDOM:
            raise self._trace.refuse(f"draws random numbers ({name})", "draw them before, and capture the tensor", name)
        if name.endswith("_") and not name.startswith("__"):
            raise self._trace.refuse(f"works in place ({name})", "change tensors outside of the callable", name)
        result = func(*args, **given)
        if is_tensor(result) and not any(is_tensor(x) and id(x) not in self._made for x in args):
            self._made[id(result)] = result
        return result

    def _constant(self, tensor: Any) -> Any:
        return tensor.item() if id(tensor) in self._made else None


def _least(tensor: Any) -> int | None:
    known = is_tensor(tensor) and tensor.numel() and tensor.device.type != "meta"
    return int(tensor.min()) if known else None


def _attribute(name: str, kind: str) -> Any:
    return _TYPES[kind] if name == "dtype" else _ATTRIBUTES.get(name)
