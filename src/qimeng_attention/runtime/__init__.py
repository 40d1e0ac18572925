"""A finished kernel: read its bundle, call it on tensors, launch it on the GPU.

Reading a bundle and showing it need the standard library alone; a call needs PyTorch and cuda-bindings, which
are imported then. Nothing here knows how kernels are made.

Not here: writing bundles (store/), judging kernels (judge/).
"""

from __future__ import annotations

from qimeng_attention.runtime.bundle import Bundle, load
from qimeng_attention.runtime.expressions import Expression, evaluate
from qimeng_attention.runtime.folder import Contents, read_folder
from qimeng_attention.runtime.manifest import FORMAT, GridAxis, Manifest, Requirement, Scalar, Tensor

__all__ = [
    "FORMAT",
    "Bundle",
    "Contents",
    "Expression",
    "GridAxis",
    "Manifest",
    "Requirement",
    "Scalar",
    "Tensor",
    "evaluate",
    "load",
    "read_folder",
]
