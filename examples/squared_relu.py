"""What `squared_relu.tl` computes, in NumPy: the reference that `qimeng judge` compares it with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def attention(Q: Array, K: Array, V: Array, scale: float) -> dict[str, Array]:
    """Give Out (B, Sq, Hq, D), and the sum of |weight| |value| that the judge's bounds may use."""
    group = Q.shape[2] // K.shape[2]
    keys, values = (np.repeat(x, group, axis=2) for x in (K, V))
    scores = scale * np.einsum("bqhd,bkhd->bhqk", Q, keys)
    q, k = np.arange(Q.shape[1])[:, None], np.arange(K.shape[1])
    weights = np.where(k <= q + K.shape[1] - Q.shape[1], np.maximum(scores, 0) ** 2, 0)
    total = weights.sum(axis=-1, keepdims=True)
    weights = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return {
        "Out": np.einsum("bhqk,bkhd->bqhd", weights, values),
        "Out_magnitude": np.einsum("bhqk,bkhd->bqhd", weights, np.abs(values)),
    }
