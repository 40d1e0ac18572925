"""Causal softmax attention beside one logit a head that has no value."""

import numpy as np


def attention(Q, K, V, Sink, scale):
    group = Q.shape[2] // K.shape[2]
    keys, values = np.repeat(K, group, axis=2), np.repeat(V, group, axis=2)
    scores = scale * np.einsum("bqhd,bkhd->bhqk", Q, keys)
    at_q, at_k = np.arange(Q.shape[1])[:, None] + K.shape[1] - Q.shape[1], np.arange(K.shape[1])
    visible = at_k <= at_q
    sink = Sink[:, None, None]
    top = np.maximum(scores.max(axis=-1, keepdims=True, where=visible, initial=-np.inf), sink)
    weights = np.exp(np.where(visible, scores - top, -np.inf))
    weights = weights / (weights.sum(axis=-1, keepdims=True) + np.exp(sink - top))
    return {
        "Out": np.einsum("bhqk,bkhd->bqhd", weights, values),
        "Out_magnitude": np.einsum("bhqk,bkhd->bqhd", np.abs(weights), np.abs(values)),
    }
