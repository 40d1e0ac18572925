"""What the programs of docs/design/programs compute, in float64 NumPy: a function for each, nothing of tl/.

A function takes the inputs and scalars by name and gives for each output a pair: its value, and the bound by
which a relative error in each weight and stored operand is multiplied (the same sum over absolute values).
"""

from __future__ import annotations

import numpy as np


def softmax(scores, sink=None):
    """Rows of weights and their LSE; a row that sees nothing has weights 0 and LSE -inf."""
    top = np.max(scores, axis=-1, keepdims=True, initial=-np.inf if sink is None else sink)
    top = np.where(np.isneginf(top), 0, top)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True) + (0 if sink is None else np.exp(sink - top))
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0]
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0), lse


def weighted(weights, v):
    return weights @ v, np.abs(weights) @ np.abs(v)


def places(sq, sk):
    """Query and key positions, as a column and a row; the last query sits at the last key."""
    return np.arange(sq)[:, None] + sk - sq, np.arange(sk)[None, :]


def per_head(one, x):
    """Call `one(batch, head, q, k, v)`, which gives (value, bound) and LSE or None, and stack the outputs."""
    b, sq, hq, _ = x["Q"].shape
    hk = x["V"].shape[2]
    out = np.zeros((2, b, sq, hq, x["V"].shape[3]))
    lse = np.zeros((b, hq, sq))
    for i in range(b):
        for h in range(hq):
            (value, bound), row = one(
                i, h, x["Q"][i, :, h], x["K"][i, :, h * x["K"].shape[2] // hq], x["V"][i, :, h * hk // hq]
            )
            out[:, i, :, h] = value, bound
            if row is not None:
                lse[i, h] = row
    return {"Out": tuple(out), "Lse": (lse, np.zeros_like(lse))}


def attention(x, score, visible):
    """`score(batch, head, s, at_q, at_k)` changes the products, `visible(batch, at_q, at_k)` is the mask."""

    def one(i, h, q, k, v):
        at_q, at_k = places(len(q), len(k))
        weights, lse = softmax(np.where(visible(i, at_q, at_k), score(i, h, q @ k.T, at_q, at_k), -np.inf))
        return weighted(weights, v), lse

    return per_head(one, x)


def causal(i, at_q, at_k):
    return at_k <= at_q


def gqa_causal(x, scale):
    return attention(x, lambda i, h, s, q, k: s * scale, causal)


def sigmoid(x, scale, bias):
    def one(i, h, q, k, v):
        at_q, at_k = places(len(q), len(k))
        return weighted(np.where(at_k <= at_q, 1 / (1 + np.exp(-(q @ k.T * scale + bias))), 0), v), None

    return {"Out": per_head(one, x)["Out"]}


def sink(x, scale):
    def one(i, h, q, k, v):
        at_q, at_k = places(len(q), len(k))
        weights, lse = softmax(np.where(at_k <= at_q, q @ k.T * scale, -np.inf), x["Sink"][h])
        return weighted(weights, v), lse

    return per_head(one, x)


def alibi(x, scale):
    return attention(x, lambda i, h, s, q, k: s * scale - x["Slopes"][h] * (q - k), causal)


def softcap(x, scale, cap):
    return attention(
        x,
        lambda i, h, s, q, k: cap * np.tanh(s * scale / cap),
        lambda i, q, k: np.full((len(q), k.shape[1]), True),
    )


def window_and_sinks(x, scale, window, first):
    return attention(x, lambda i, h, s, q, k: s * scale, lambda i, q, k: (k <= q) & ((k < first) | (q - k < window)))


def forgetting(x, scale):
    def score(i, h, s, q, k):
        gate = x["Gate"][i, h]
        return s * scale + np.where(q >= 0, gate[np.maximum(q, 0)] if gate.size else 0, 0) - gate[k]

    return attention(x, score, causal)


def block_list(x, scale):
    """Every tile is listed, so that the mask alone decides."""
    document = x["Document"]

    def visible(i, q, k):
        q = np.arange(len(q))[:, None]  # this mask counts queries from 0
        padded = np.append(document[i], 0)  # past the end an element reads 0
        here = padded[np.minimum(q, document.shape[1])]
        return (k <= q) & (here == document[i][k])

    return attention(x, lambda i, h, s, q, k: s * scale, visible)


def stick_breaking(x, scale):
    """Key by key, from the nearest backwards."""

    def one(i, h, q, k, v):
        at_q, at_k = places(len(q), len(k))
        broken = np.where(at_k < at_q, 1 / (1 + np.exp(-(q @ k.T) * scale)), 0)
        weights, left = np.zeros_like(broken), np.ones(len(q))
        for key in reversed(range(len(k))):
            weights[:, key] = broken[:, key] * left
            left = left * (1 - broken[:, key])
        return weighted(weights, v), None

    return {"Out": per_head(one, x)["Out"]}


def linear(x, scale):
    def one(i, h, q, k, v):
        seen = np.tril(np.ones((len(q), len(k))))
        return (scale * (q @ k.T * seen) @ v, abs(scale) * (np.abs(q) @ np.abs(k).T * seen) @ np.abs(v)), None

    return {"Out": per_head(one, x)["Out"]}


def differential(x, scale):
    h = x["V"].shape[2]
    first, second = ({"Q": x["Q"][:, :, n::2], "K": x["K"][:, :, n::2], "V": x["V"]} for n in (0, 1))
    (a, size_a), (b, size_b) = (gqa_causal(y, scale)["Out"] for y in (first, second))
    weight = x["Lambda"].reshape(1, 1, h, 1)
    return {"Out": (a - weight * b, size_a + np.abs(weight) * size_b)}


def nsa_selected(x, scale, tile):
    """Each query and group sees the tiles of its list, up to the query itself."""
    b, sq, hq, d = x["Q"].shape
    sk, hk = x["K"].shape[1:3]
    out, lse = np.zeros((2, b, sq, hq, d)), np.zeros((b, hq, sq))
    for i, t, h in np.ndindex(b, sq, hq):
        g = h * hk // hq
        listed = x["Idx"][i, t, g]
        seen = np.isin(np.arange(sk) // tile, listed[listed >= 0]) & (np.arange(sk) <= t + sk - sq)
        weights, row = softmax(np.where(seen, x["K"][i, :, g] @ x["Q"][i, t, h] * scale, -np.inf)[None])
        value, bound = weighted(weights, x["V"][i, :, g])
        out[0, i, t, h], out[1, i, t, h], lse[i, h, t] = value[0], bound[0], row[0]
    return {"Out": tuple(out), "Lse": (lse, np.zeros_like(lse))}


def _decode(q, k, v, scale):
    """One token's heads (h, D) over its sequence's keys."""
    weights, lse = softmax(q @ k.T * scale)
    return weighted(weights, v), lse


def paged(x, scale, page):
    b, hq, d = x["Q"].shape
    hk = x["K"].shape[1]
    out, lse = np.zeros((2, b, hq, d)), np.zeros((b, hq))
    for i, h in np.ndindex(b, hq):
        at = np.arange(x["Length"][i])
        rows = x["Table"][i, at // page] * page + at % page
        g = h * hk // hq
        (value, bound), row = _decode(x["Q"][i, h][None], x["K"][rows, g], x["V"][rows, g], scale)
        out[0, i, h], out[1, i, h], lse[i, h] = value[0], bound[0], row[0]
    return {"Out": tuple(out), "Lse": (lse, np.zeros_like(lse))}


def mla_decode(x, scale, dv):
    b, h, _ = x["Q"].shape
    out, lse = np.zeros((2, b, h, dv)), np.zeros((b, h))
    for i in range(b):
        k = x["K"][i, : x["Length"][i]]
        (value, bound), lse[i] = _decode(x["Q"][i], k, k[:, :dv], scale)
        out[:, i] = value, bound
    return {"Out": tuple(out), "Lse": (lse, np.zeros_like(lse))}


def varlen(x, scale):
    """Each sequence by itself, as a batch of one."""
    hq = x["Q"].shape[1]
    out, lse = np.zeros((2, *x["Q"].shape)), np.zeros((hq, len(x["Q"])))
    for i in range(len(x["StartQ"]) - 1):
        q, k = slice(*x["StartQ"][i : i + 2]), slice(*x["StartK"][i : i + 2])
        one = gqa_causal({"Q": x["Q"][None, q], "K": x["K"][None, k], "V": x["V"][None, k]}, scale)
        out[:, q], lse[:, q] = [y[0] for y in one["Out"]], one["Lse"][0][0]
    return {"Out": tuple(out), "Lse": (lse, np.zeros_like(lse))}


def fp8(x, scale, descale_q, descale_v, tile):
    sk = x["K"].shape[1]
    unit = np.moveaxis(x["DescaleK"], 1, 2)[:, np.arange(sk) // tile, :, None]  # (B, Sk, Hk, 1)
    y = {"Q": x["Q"] * descale_q, "K": x["K"] * unit, "V": x["V"] * descale_v}
    return gqa_causal(y, scale)


def gemm_epilogue(x):
    c = x["A"] @ x["W"] + x["Bias"]
    return {"Out": (c / (1 + np.exp(-c)), np.zeros_like(c))}


def backward(x, scale):
    """Gradients from the stored output and LSE, as the formula has them."""
    b, sq, h, d = x["Q"].shape
    sk = x["K"].shape[1]
    grads = {
        "dQ": np.zeros((2, b, sq, h, d)),
        "dK": np.zeros((2, b, sk, h, d)),
        "dV": np.zeros((2, b, sk, h, d)),
    }
    for i, n in np.ndindex(b, h):
        q, k, v, do, o = (x[name][i, :, n] for name in ("Q", "K", "V", "dO", "Out"))
        at_q, at_k = places(sq, sk)
        with np.errstate(over="ignore", invalid="ignore"):
            p = np.where(at_k <= at_q, np.exp(q @ k.T * scale - x["Lse"][i, n][:, None]), 0)
        ds = p * (do @ v.T - (o * do).sum(1, keepdims=True)) * scale
        for name, a, c in (("dQ", ds, k), ("dK", ds.T, q), ("dV", p.T, do)):
            grads[name][:, i, :, n] = weighted(a, c)
    return {name: tuple(g) for name, g in grads.items()}
