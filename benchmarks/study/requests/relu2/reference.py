"""Each key weighs its positive score squared, over the number of keys."""

import numpy as np


def attention(Q, K, V, scale):
    group = Q.shape[2] // K.shape[2]
    keys, values = np.repeat(K, group, axis=2), np.repeat(V, group, axis=2)
    scores = scale * np.einsum("bqhd,bkhd->bhqk", Q, keys)
    at_q, at_k = np.arange(Q.shape[1])[:, None] + K.shape[1] - Q.shape[1], np.arange(K.shape[1])
    visible = at_k <= at_q
    weights = np.where(visible, np.maximum(scores, 0) ** 2 / K.shape[1], 0)
    return {
        "Out": np.einsum("bhqk,bkhd->bqhd", weights, values),
        "Out_magnitude": np.einsum("bhqk,bkhd->bqhd", np.abs(weights), np.abs(values)),
    }
