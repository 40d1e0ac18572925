"""Operators as users of FlexAttention write them: callables with FlexAttention's signatures, tensors captured.

`accepted(sizes)` gives those that become descriptions, `refused(sizes)` those that do not. Both are written for this
project, after what the documentation of FlexAttention and the collections around it show; each goes unchanged into
`flex_attention` and `create_block_mask`, and into `spec_from_flex`.

Not here: what is done with them (flex_mods.py, flex_speed.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch.nn.attention.flex_attention import and_masks, or_masks

Mod = Callable[..., Any]


@dataclass(frozen=True)
class Sizes:
    """The sizes of a call: batch, heads, queries, keys."""

    B: int = 2
    H: int = 16
    Sq: int = 4096
    Sk: int = 4096


FULL = Sizes()
SMALL = Sizes(2, 4, 64, 64)


@dataclass(frozen=True)
class Mods:
    """What FlexAttention is given, and how the captured tensors' dimensions are called."""

    score_mod: Mod | None = None
    mask_mod: Mod | None = None
    dims: Mapping[str, Sequence[str | int]] = field(default_factory=dict)
    queries: int | None = None  # of a call, where they are not as many as `Sizes` says
    keys: int | None = None

    def sizes(self, usual: Sizes) -> Sizes:
        """Give the sizes of a call."""
        return replace(usual, Sq=self.queries or usual.Sq, Sk=self.keys or usual.Sk)


@dataclass
class Draw:
    """Makes tensors from a fixed seed on a device."""

    device: str
    random: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))

    def tensor(self, values: Any, dtype: str) -> Any:
        """Make a tensor of given values."""
        return torch.tensor(np.ascontiguousarray(values), dtype=getattr(torch, dtype), device=self.device)

    def normal(self, *shape: int, dtype: str = "float32") -> Any:
        """Draw a tensor of normal numbers."""
        return self.tensor(self.random.standard_normal(shape, np.float32), dtype)

    def ids(self, batch: int, length: int, documents: int) -> np.ndarray[Any, Any]:
        """Draw documents of different lengths, one behind the other: the number of each place's."""
        ends = np.sort(self.random.integers(1, length, (batch, documents - 1)), 1)
        return np.stack([np.searchsorted(e, np.arange(length), side="right") for e in ends])


# ------------------------------------------------------------------ masks


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def window(size: int) -> Mod:
    """Show the last `size` keys."""
    return lambda b, h, q_idx, kv_idx: q_idx - kv_idx < size


def around(size: int) -> Mod:
    return lambda b, h, q_idx, kv_idx: torch.abs(q_idx - kv_idx) <= size


def first(count: int) -> Mod:
    return lambda b, h, q_idx, kv_idx: kv_idx < count


def every(step: int) -> Mod:
    return lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % step == 0


def within(lengths: Any) -> Mod:
    """Show the first keys, as many as the batch entry has."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return kv_idx < lengths[b]

    return mask_mod


def same_document(ids: Any) -> Mod:
    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ids[b, q_idx] == ids[b, kv_idx]

    return mask_mod


def inside_documents(ids: Any, starts: Any, inner: Mod) -> Mod:
    """Let a mask count within each document of a packed sequence."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        q_inside = q_idx - starts[ids[q_idx]]
        kv_inside = kv_idx - starts[ids[kv_idx]]
        return (ids[q_idx] == ids[kv_idx]) & inner(b, h, q_inside, kv_inside)

    return mask_mod


def neighbourhood(width: int, height: int, reach: int) -> Mod:
    """Show the square around a place of an image; at the image's edges it is moved inwards."""

    def place(index: Any) -> tuple[Any, Any]:
        return index % width, index // width

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        (q_x, q_y), (kv_x, kv_y) = place(q_idx), place(kv_idx)
        across = (q_x.clamp(reach, width - 1 - reach) - kv_x).abs() <= reach
        down = (q_y.clamp(reach, height - 1 - reach) - kv_y).abs() <= reach
        return across & down

    return mask_mod


def block_table(shown: Any, size: int) -> Mod:
    """Show the pairs of blocks that a table names."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return shown[q_idx // size, kv_idx // size]

    return mask_mod


def local_heads(size: int) -> Mod:
    """Let every other head see a window only."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        near = q_idx - kv_idx < size
        return (q_idx >= kv_idx) & torch.where(h % 2 == 0, near, True)

    return mask_mod


def modalities(spans: Any) -> Mod:
    """Text is causal, and each span of another modality sees all of itself too."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = q_idx >= kv_idx
        for offset, length in spans[b]:
            seen = seen | ((q_idx >= offset) & (kv_idx < offset + length))
        return seen

    return mask_mod


def images(begins: Any, ends: Any, tokens: int) -> Mod:
    """Show the tokens of an image to the text between two places: cross attention."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        image = kv_idx // tokens
        return (q_idx >= begins[b, image]) & (q_idx < ends[b, image])

    return mask_mod


def block_diffusion(noised: int, size: int) -> Mod:
    """The noised half sees its own block and the clean blocks before it, the clean half is causal by blocks."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        q_clean, kv_clean = q_idx >= noised, kv_idx >= noised
        q_block = torch.where(q_clean, (q_idx - noised) // size, q_idx // size)
        kv_block = torch.where(kv_clean, (kv_idx - noised) // size, kv_idx // size)
        own = (q_block == kv_block) & (q_clean == kv_clean)
        before = (q_block > kv_block) & kv_clean & ~q_clean
        clean = (q_block >= kv_block) & kv_clean & q_clean
        return own | before | clean

    return mask_mod


def shared_prefixes(ids: Any, prefixes: Any) -> Mod:
    """Documents are causal, and see the document that they continue."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = (ids[q_idx] == ids[kv_idx]) | (prefixes[q_idx] == ids[kv_idx])
        return (q_idx >= kv_idx) & seen

    return mask_mod


def tree(ancestors: Any) -> Mod:
    """Show what a table of all pairs shows."""

    def mask_mod(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return ancestors[q_idx, kv_idx]

    return mask_mod


def checkerboard(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return (q_idx & 1) == (kv_idx & 1)


# ------------------------------------------------------------------ scores


def computed_slopes(heads: int) -> Mod:
    """ALiBi with the slopes of the paper."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        slope = torch.exp2(-((h + 1) * 8.0 / heads))
        return score + (kv_idx - q_idx) * slope

    return score_mod


def learned_slopes(slopes: Any) -> Mod:
    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score - slopes[h] * torch.abs(q_idx - kv_idx)

    return score_mod


def absolute_distance(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score - (q_idx - kv_idx).abs() / 64


def soft_cap(cap: float) -> Mod:
    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return cap * torch.tanh(score / cap)

    return score_mod


def bucketed(bias: Any, buckets: Any, reach: int) -> Mod:
    """T5's bias: the bucket of a distance is looked up, and the bucket's bias of the head."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[buckets[torch.clamp(kv_idx - q_idx, -reach, reach) + reach], h]

    return score_mod


def relative(table: Any, longest: int) -> Mod:
    """A bias of each distance and head."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + table[h, q_idx - kv_idx + longest - 1]

    return score_mod


def by_head(temperature: Any) -> Mod:
    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score * temperature[h]

    return score_mod


def full_bias(bias: Any) -> Mod:
    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[h, q_idx, kv_idx]

    return score_mod


def graph_distances(bias: Any, distances: Any) -> Mod:
    """A bias of each head for the distance of two nodes of a graph."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[h, distances[b, q_idx, kv_idx]]

    return score_mod


def forgetting(decay: Any) -> Mod:
    """Running sums of a gate's logarithms: how much is forgotten between a key and a query."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + decay[b, h, q_idx] - decay[b, h, kv_idx]

    return score_mod


def near_and_far(near: int, far: int) -> Mod:
    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = torch.abs(q_idx - kv_idx)
        return torch.where(distance < near, score, torch.where(distance < far, score * 0.5, score * 0.25 - 1.0))

    return score_mod


def hides_keys(hidden: Any) -> Mod:
    """Hide by a score, as one does without a mask."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return torch.where(hidden[b, kv_idx], -float("inf"), score)

    return score_mod


# ------------------------------------------------------------------ all of them


def accepted(sizes: Sizes, device: str = "cpu") -> dict[str, Mods]:
    """Give every operator that becomes a description, by name."""
    draw = Draw(device)
    return {**_positions(sizes), **_documents(sizes, draw), **_tables(sizes, draw), **_scores(sizes, draw)}


def _positions(sizes: Sizes) -> dict[str, Mods]:
    """Give masks of positions alone."""
    n = sizes.Sk
    width = 1 << (int(math.log2(n)) // 2)
    return {
        "causal": Mods(mask_mod=causal),
        "sliding_window": Mods(mask_mod=and_masks(causal, window(n // 4))),
        "dilated_window": Mods(mask_mod=and_masks(causal, window(n // 16), every(4))),
        "strided": Mods(mask_mod=and_masks(causal, or_masks(window(n // 32), every(n // 32)))),
        "checkerboard": Mods(mask_mod=checkerboard),
        "neighbourhood_2d": Mods(mask_mod=neighbourhood(width, n // width, max(1, width // 8))),
        "local_heads": Mods(soft_cap(50.0), local_heads(n // 8)),
        "block_diffusion": Mods(mask_mod=block_diffusion(n // 4, max(4, n // 64)), queries=n // 2, keys=n // 2),
    }


def _documents(sizes: Sizes, draw: Draw) -> dict[str, Mods]:
    """Give masks of lengths and documents."""
    batch, n = sizes.B, sizes.Sk
    ids = draw.tensor(draw.ids(batch, n, 8), "int32")
    packed = draw.ids(1, n, 8)[0]
    doc, starts = draw.tensor(packed, "int32"), draw.tensor(np.searchsorted(packed, np.arange(9)), "int32")
    lengths = draw.random.integers(n // 2, n, batch)
    prefixes = draw.tensor(packed // 4 * 4, "int32")  # the first of four is what the others continue
    sinks = draw.tensor(draw.random.integers(1, 8, batch), "int32")
    short = draw.tensor(lengths // 4, "int32")
    each, whole, one = {"lengths": ["B"]}, {"ids": ["B", "Sk"]}, {"ids": ["Sk"]}
    return {
        "prefix_lm": Mods(mask_mod=or_masks(causal, within(short)), dims=each),
        "padding": Mods(mask_mod=within(draw.tensor(lengths, "int32")), dims=each),
        "attention_sinks": Mods(mask_mod=and_masks(causal, or_masks(window(n // 8), within(sinks))), dims=each),
        "documents": Mods(mask_mod=and_masks(causal, same_document(ids)), dims=whole),
        "documents_window": Mods(mask_mod=and_masks(causal, same_document(ids), window(n // 8)), dims=whole),
        "packed_windows": Mods(mask_mod=inside_documents(doc, starts, and_masks(causal, window(n // 16))), dims=one),
        "shared_prefixes": Mods(mask_mod=shared_prefixes(doc, prefixes), dims=one | {"prefixes": ["Sk"]}),
    }


def _tables(sizes: Sizes, draw: Draw) -> dict[str, Mods]:
    """Give masks of spans and tables."""
    batch, n, shown, size = sizes.B, sizes.Sk, 8, max(4, sizes.Sk // 64)
    spans = np.stack([np.arange(3) * n // 4 + n // 16, np.full(3, n // 8)], 1)
    spans = draw.tensor(np.stack([spans + np.array([3 * b, 0]) for b in range(batch)]), "int32")
    edges = np.sort(draw.random.integers(0, sizes.Sq, (batch, shown)), 1)
    begins, ends = np.c_[np.zeros(batch), edges[:, 1:]], np.c_[edges[:, 1:], np.full(batch, sizes.Sq)]
    text = draw.tensor(begins, "int32"), draw.tensor(ends, "int32")
    blocks = draw.tensor(draw.random.random((n // size, n // size)) < 0.15, "bool")
    ancestors = np.tri(n, dtype=bool) & (np.arange(n)[:, None] % 4 == np.arange(n) % 4)
    return {
        "modalities": Mods(mask_mod=modalities(spans), dims={"spans": ["B", 3, 2]}),
        "images": Mods(
            mask_mod=images(*text, size), dims={"begins": ["B", shown], "ends": ["B", shown]}, keys=shown * size
        ),
        "blocks": Mods(mask_mod=or_masks(first(size), around(3 * size // 2), block_table(blocks, size))),
        "tree": Mods(mask_mod=tree(draw.tensor(ancestors, "bool")), dims={"ancestors": ["Sq", "Sk"]}),
    }


def _scores(sizes: Sizes, draw: Draw) -> dict[str, Mods]:
    """Give score modifiers."""
    batch, heads, n = sizes.B, sizes.H, sizes.Sk
    slopes = draw.tensor(2.0 ** (-8 * np.arange(1, heads + 1) / heads), "float32")
    temperature = draw.tensor(np.linspace(0.5, 1.5, heads), "float32")
    reach = min(128, n // 4)
    buckets = draw.tensor(_t5_buckets(reach), "int32")
    bias = np.tile(draw.random.standard_normal((heads, 64, 64), np.float32), (n // 64, n // 64))
    places = np.arange(n)
    steps = np.minimum(abs(places[:, None] - places) // 4 + (places[:, None] ^ places) % 3, 15)
    decay = np.cumsum(np.log(draw.random.uniform(0.95, 1, (batch, heads, n))), 2)
    hidden = draw.tensor(draw.random.random((batch, n)) < 0.3, "bool")
    return {
        "alibi": Mods(computed_slopes(heads), causal),
        "alibi_learned": Mods(learned_slopes(slopes), dims={"slopes": ["Hq"]}),
        "absolute_distance": Mods(absolute_distance),
        "soft_cap": Mods(soft_cap(30.0), causal),
        "t5_bias": Mods(bucketed(draw.normal(32, heads), buckets, reach), dims={"bias": [32, "Hq"]}),
        "relative_bias": Mods(relative(draw.normal(heads, 2 * n - 1), n), causal, dims={"table": ["Hq", 2 * n - 1]}),
        "temperature_by_head": Mods(by_head(temperature), causal, dims={"temperature": ["Hq"]}),
        "full_bias": Mods(full_bias(draw.tensor(bias, "bfloat16")), dims={"bias": ["Hq", "Sq", "Sk"]}),
        "graph_distances": Mods(
            graph_distances(draw.normal(heads, 16), draw.tensor(np.stack([steps] * batch), "int32")),
            dims={"bias": ["Hq", 16], "distances": ["B", "Sq", "Sk"]},
        ),
        "forgetting": Mods(forgetting(draw.tensor(decay, "float32")), causal, dims={"decay": ["B", "Hq", "Sk"]}),
        "near_and_far": Mods(near_and_far(n // 32, n // 4)),
        "hidden_keys": Mods(hides_keys(hidden), dims={"hidden": ["B", "Sk"]}),
    }


def _t5_buckets(reach: int) -> np.ndarray[Any, Any]:
    """Give the bucket of each distance from -reach to reach: small ones have their own, far ones share by logarithm."""
    distance = np.arange(-reach, reach + 1)
    far = 8 + np.log(np.maximum(abs(distance), 8) / 8) / math.log(128 / 8) * 8
    return np.where(abs(distance) < 8, abs(distance), np.minimum(far, 15)).astype(int) + 16 * (distance > 0)


# ------------------------------------------------------------------ what is refused


def refused(sizes: Sizes, device: str = "cpu") -> dict[str, Mods]:
    """Give operators that no description can hold, by name: none has a value for each score by itself."""
    draw = Draw(device)
    q_rope, k_rope = draw.normal(sizes.B, sizes.H, sizes.Sq, 64), draw.normal(sizes.B, sizes.Sk, 64)
    return {
        "dropout": Mods(_dropout),
        "latent_positions": Mods(_latent(q_rope, k_rope)),
        "python_list": Mods(mask_mod=_listed([sizes.Sk // 8 << n % 3 for n in range(sizes.H)])),
        "t5_in_place": Mods(_computed_buckets(draw.normal(32, sizes.H), 16)),
        "gelu": Mods(lambda score, b, h, q_idx, kv_idx: torch.nn.functional.gelu(score)),
        "row_maximum": Mods(lambda score, b, h, q_idx, kv_idx: score - score.max()),
        "z_order": Mods(mask_mod=_z_order(4)),
        "python_branch": Mods(_branch),
    }


def _dropout(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(torch.rand(()) < 0.1, -float("inf"), score)


def _latent(q_rope: Any, k_rope: Any) -> Mod:
    """A product of captured vectors for each score: latent attention's positions."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + torch.dot(q_rope[b, h, q_idx], k_rope[b, kv_idx])

    return score_mod


def _listed(sizes: Sequence[int]) -> Mod:
    """A Python list in place of a tensor."""
    return lambda b, h, q_idx, kv_idx: q_idx - kv_idx < sizes[h]


def _computed_buckets(bias: Any, exact: int) -> Mod:
    """T5's buckets computed for each score, by a logarithm that is cut to an integer."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        distance = torch.abs(kv_idx - q_idx)
        far = exact + (torch.log(distance / exact) / math.log(128 / exact) * exact).to(torch.int32)
        return score + bias[torch.where(distance < exact, distance, torch.clamp(far, max=31)), h]

    return score_mod


def _z_order(reach: int) -> Mod:
    """Rows of an image whose places lie along a Z-shaped curve: every second bit of the index."""

    def row(index: Any) -> Any:
        bits = (index >> 1) & 0x55555555
        bits = (bits | (bits >> 1)) & 0x33333333
        return (bits | (bits >> 2)) & 0x0F0F0F0F

    return lambda b, h, q_idx, kv_idx: (row(q_idx) - row(kv_idx)).abs() <= reach


def _branch(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score if q_idx >= kv_idx else score * 0.5
