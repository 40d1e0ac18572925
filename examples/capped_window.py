"""What `capped_window.yaml` describes, in NumPy: what `--reference` compares description and kernel with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def attention(q: Array, k: Array, v: Array, slopes: Array, scale: float) -> Array:
    """Give out (B, Sq, Hq, D)."""
    group = q.shape[2] // k.shape[2]
    k, v = (np.repeat(x, group, axis=2) for x in (k, v))
    rows = np.arange(q.shape[1])[:, None] + k.shape[1] - q.shape[1]
    keys = np.arange(k.shape[1])
    scores = 30 * np.tanh(np.einsum("bqhd,bkhd->bhqk", q, k) * scale / 30)
    scores = scores - slopes[:, None, None] * (rows - keys)
    scores = np.where((keys <= rows) & (rows - keys <= 512), scores, -np.inf)
    weights = np.exp(scores - np.maximum(scores.max(axis=-1, keepdims=True), -1e300))
    return np.einsum("bhqk,bkhd->bqhd", weights / weights.sum(axis=-1, keepdims=True), v)
