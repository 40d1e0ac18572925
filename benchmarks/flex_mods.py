"""Operators as FlexAttention's users write them, each traced to a spec and compared with the callable itself.

    python benchmarks/flex_mods.py            # needs PyTorch, no GPU

For each one the callable is evaluated by PyTorch on a dense grid of scores, and so is the expression that the trace
gives, in float64. Not here: kernels made of them, which need a GPU to run.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from qimeng_attention.integrations.flex import FlexOperator, spec_from_flex
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.named_tensors import kernel_name

BATCH, HEADS, QUERIES, KEYS = 2, 4, 48, 64
TOLERANCE = 1e-5  # callables compute in float32 where their tensors do


@dataclass(frozen=True)
class Mods:
    """What FlexAttention is given."""

    score_mod: Callable[..., Any] | None = None
    mask_mod: Callable[..., Any] | None = None


def both(*masks: Callable[..., Any]) -> Callable[..., Any]:
    """Show what all masks show."""

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = b.new_ones((), dtype=torch.bool)
        for one in masks:
            seen = seen & one(b, h, q_idx, kv_idx)
        return seen

    return mask


def either(*masks: Callable[..., Any]) -> Callable[..., Any]:
    """Show what some mask shows."""

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        seen = b.new_zeros((), dtype=torch.bool)
        for one in masks:
            seen = seen | one(b, h, q_idx, kv_idx)
        return seen

    return mask


# ------------------------------------------------------------------ masks


def causal(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return q_idx >= kv_idx


def shown(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return b.new_ones(size=(), dtype=torch.bool)


def window(size: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: q_idx - kv_idx <= size


def around(size: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: torch.abs(q_idx - kv_idx) <= size


def dilated(step: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: (q_idx - kv_idx) % step == 0


def first(count: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: kv_idx < count


def prefix_of(lengths: torch.Tensor) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: kv_idx < lengths[b]


def documents(ids: torch.Tensor, inner: Callable[..., Any]) -> Callable[..., Any]:
    """Let a mask count within each document."""
    starts = torch.searchsorted(ids, torch.arange(int(ids.max()) + 1))

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        q_inside, k_inside = q_idx - starts[ids[q_idx]], kv_idx - starts[ids[kv_idx]]
        return torch.where(ids[q_idx] == ids[kv_idx], inner(b, h, q_inside, k_inside), False)

    return mask


def neighbourhood(width: int, reach: int) -> Callable[..., Any]:
    """Show the places of an image whose rows are `width` long that lie within `reach`, both ways."""

    def mask(b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        q_x, q_y = q_idx // width, q_idx % width
        k_x, k_y = kv_idx // width, kv_idx % width
        return ((q_x - k_x).abs() <= reach) & ((q_y - k_y).abs() <= reach)

    return mask


def blocks(size: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: q_idx // size == kv_idx // size


def windows_by_head(sizes: torch.Tensor) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: (q_idx >= kv_idx) & (q_idx - kv_idx < sizes[h])


def some_heads_see_all(count: int) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: torch.logical_or(h < count, torch.logical_not(kv_idx > q_idx))


def table(shown_pairs: torch.Tensor) -> Callable[..., Any]:
    return lambda b, h, q_idx, kv_idx: shown_pairs[q_idx // 8, kv_idx // 8]


# ------------------------------------------------------------------ scores


def unchanged(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score


def distance(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return score + (q_idx - kv_idx)


def alibi(heads: int) -> Callable[..., Any]:
    return lambda score, b, h, q_idx, kv_idx: score + torch.exp2(-((h + 1) * 8.0 / heads)) * (kv_idx - q_idx)


def learned_slopes(slopes: torch.Tensor) -> Callable[..., Any]:
    return lambda score, b, h, q_idx, kv_idx: score - slopes[h] * (q_idx - kv_idx).abs()


def bucketed(bias: torch.Tensor, buckets: torch.Tensor, reach: int) -> Callable[..., Any]:
    """Add T5's bias: the bucket of a distance is looked up, and the bucket's bias of the head."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        return score + bias[buckets[torch.clamp(kv_idx - q_idx, -reach, reach) + reach], h]

    return score_mod


def absolute(bias: torch.Tensor) -> Callable[..., Any]:
    return lambda score, b, h, q_idx, kv_idx: score + bias[b][h][q_idx][kv_idx]


def soft_cap(cap: float) -> Callable[..., Any]:
    return lambda score, b, h, q_idx, kv_idx: cap * torch.tanh(score / cap)


def scaled_by_head(scales: torch.Tensor) -> Callable[..., Any]:
    return lambda score, b, h, q_idx, kv_idx: score * scales[h]


def tempered(temperature: torch.Tensor) -> Callable[..., Any]:
    return lambda score, b, h, q_idx, kv_idx: score / torch.maximum(temperature, score.new_full((), 0.25))


def causal_as_score(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
    return torch.where(q_idx >= kv_idx, score, -float("inf"))


def gated(gate: torch.Tensor) -> Callable[..., Any]:
    return lambda score, b, h, q_idx, kv_idx: torch.where(gate[b, kv_idx], score, torch.minimum(score, score * 0.5))


def chained(*mods: Callable[..., Any]) -> Callable[..., Any]:
    """Apply score modifiers one behind the other."""

    def score_mod(score: Any, b: Any, h: Any, q_idx: Any, kv_idx: Any) -> Any:
        for mod in mods:
            score = mod(score, b, h, q_idx, kv_idx)
        return score

    return score_mod


# ------------------------------------------------------------------ all of them


def mods() -> dict[str, Mods]:
    """Give every operator by name, with tensors drawn from a fixed seed."""
    g = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=g)

    def below(most: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, most, shape, generator=g)

    ids = torch.sort(below(5, KEYS)).values
    return {
        "noop": Mods(unchanged, shown),
        "causal": Mods(mask_mod=causal),
        "causal as a score": Mods(causal_as_score),
        "sliding window": Mods(mask_mod=both(causal, window(9))),
        "window around": Mods(mask_mod=around(7)),
        "prefix": Mods(mask_mod=either(causal, prefix_of(torch.tensor([5, 31], dtype=torch.int32)))),
        "documents": Mods(mask_mod=documents(ids, causal)),
        "documents with windows": Mods(mask_mod=documents(ids, both(causal, window(3)))),
        "dilated window": Mods(mask_mod=both(causal, window(24), dilated(3))),
        "global and window": Mods(mask_mod=either(first(4), around(5))),
        "neighbourhood": Mods(mask_mod=neighbourhood(8, 2)),
        "block diagonal": Mods(mask_mod=blocks(16)),
        "block table": Mods(mask_mod=table(normal(KEYS // 8, KEYS // 8) > 0)),
        "windows by head": Mods(mask_mod=windows_by_head(torch.tensor([1, 4, 9, 64]))),
        "heads that see all": Mods(mask_mod=some_heads_see_all(2)),
        "distance": Mods(distance),
        "alibi": Mods(alibi(HEADS), causal),
        "learned slopes": Mods(learned_slopes(normal(HEADS))),
        "T5": Mods(bucketed(normal(32, HEADS), below(32, 41), 20)),
        "absolute bias": Mods(absolute(normal(BATCH, HEADS, QUERIES, KEYS))),
        "soft cap": Mods(soft_cap(2.0), causal),
        "scale by head": Mods(scaled_by_head(normal(HEADS))),
        "temperature": Mods(tempered(torch.tensor(0.7))),
        "gate": Mods(gated(normal(BATCH, KEYS) > 0)),
        "soft cap, then slopes": Mods(chained(soft_cap(3.0), learned_slopes(normal(HEADS))), both(causal, window(30))),
    }


def traced(given: Mods) -> FlexOperator:
    """Trace one of them."""
    return spec_from_flex(given.score_mod, given.mask_mod, Hq=HEADS, Hk=HEADS // 2, Dqk=64)


def difference(given: Mods) -> float:
    """Give the largest difference between a callable's scores and the traced expression's, hidden ones as -inf."""
    eager = _eager(given)
    found = _expression(traced(given))
    with np.errstate(invalid="ignore"):
        error = np.where(eager == found, 0, np.abs(eager - found))
    return math.inf if np.isnan(error).any() else float(error.max())


def _scores() -> torch.Tensor:
    return 3 * torch.randn((BATCH, HEADS, QUERIES, KEYS), generator=torch.Generator().manual_seed(1))


def _eager(given: Mods) -> np.ndarray:
    """Evaluate the callables themselves at every place, as FlexAttention does: mapped over one index after another."""
    sizes = (BATCH, HEADS, QUERIES, KEYS)
    places = [torch.arange(n, dtype=torch.int32) for n in sizes]
    scores = _scores()
    if given.score_mod is not None:
        scores = _mapped(given.score_mod, 1)(scores, *places)
    if given.mask_mod is not None:
        scores = torch.where(_mapped(given.mask_mod, 0)(*places), scores, -math.inf)
    return scores.double().expand(sizes).numpy()


def _mapped(f: Callable[..., Any], scores: int) -> Callable[..., Any]:
    for place in reversed(range(4)):
        mapped = [0 if n == place else None for n in range(4)]
        f = torch.vmap(f, in_dims=(*[0] * scores, *mapped))
    return f


def _expression(operator: FlexOperator) -> np.ndarray:
    """Evaluate the traced expressions, head by head."""
    contents = {kernel_name(n): _values(t) for n, t in operator.tensors.items()}
    meaning = Operator.of(operator.spec).bind(contents)
    call = Call(BATCH, QUERIES, KEYS, HEADS, HEADS // 2, 64, 64, 1.0)
    rows, keys, scores = np.arange(QUERIES), np.arange(KEYS), _scores().double().numpy()
    found = np.empty(scores.shape)
    for b in range(BATCH):
        for h in range(HEADS):
            modified = meaning.modified(call, b, h, rows, keys, scores[b, h])
            found[b, h] = np.where(meaning.visible(call, b, h, rows, keys), modified, -np.inf)
    return found


def _values(t: torch.Tensor) -> np.ndarray:
    return (t.float() if t.is_floating_point() else t).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON value")
    asked = parser.parse_args()
    rows = []
    for name, given in mods().items():
        spec = traced(given).spec
        tensors = {n: t.describe() for n, t in spec.tensors.items()}
        rows.append(
            {"name": name, "mask": spec.mask, "score": spec.score, "tensors": tensors, "difference": difference(given)}
        )
    if asked.json:
        print(json.dumps(rows, indent=1))
        return
    for row in rows:
        print(f"{row['name']}: off by {row['difference']:.1e}\n  mask {row['mask']}\n  score {row['score']}")
    worst = max(float(row["difference"]) for row in rows)
    print(f"{len(rows)} operators, off by {worst:.1e} at most, allowed {TOLERANCE:.1e}")
    raise SystemExit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
