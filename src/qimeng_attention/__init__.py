"""From the description of an attention operator to a verified FlashAttention-class CUDA kernel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qimeng_attention.runtime import Bundle, load
    from qimeng_attention.spec import AttentionSpec
    from qimeng_attention.workflow import generate

__version__ = "0.1.0"
__all__ = ["AttentionSpec", "Bundle", "generate", "load"]

_HOMES = {
    "AttentionSpec": "qimeng_attention.spec",
    "generate": "qimeng_attention.workflow",
    "load": "qimeng_attention.runtime",
    "Bundle": "qimeng_attention.runtime",
}


def __getattr__(name: str) -> Any:
    """Load public names when they are first used: importing the package costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'qimeng_attention' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)
