"""A kernel beside PyTorch's attention: error against float64, time against scaled_dot_product_attention.

Not here: the verdict on a kernel, which asks far more (judge/).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from typing import Any

NOT_AVAILABLE = "not available"
_ROWS = 2048  # of one head at a time: bounds the memory of the float64 scores
_WARM_UP, _TIMED = 3, 20  # calls


def plain_mask(spec: bytes) -> str | None:
    """Give "full" or "causal" if the operator is plain attention with that mask, else None."""
    fields = json.loads(spec)
    mask = str(fields.get("mask", "")).strip()
    plain = str(fields.get("score", "score")).strip() == "score" and fields.get("softcap") is None
    plain = plain and fields.get("weights", "softmax") == "softmax"
    plain = plain and not fields.get("varlen") and not fields.get("seqused_k")  # nor has each entry its own length
    return mask if plain and mask in ("full", "causal") else None


def compare(
    torch: Any, call: Callable[[], Any], tensors: tuple[Any, Any, Any], scale: float, spec: bytes
) -> dict[str, Any]:
    """Measure error and time of `call`, which computes the operator on the tensors."""
    mask = plain_mask(spec)
    out = call()
    found: dict[str, Any] = {
        "max_error": NOT_AVAILABLE,
        "mean_error": NOT_AVAILABLE,
        "reference": NOT_AVAILABLE,
    }
    if mask is not None:
        largest, mean = errors(torch, out, tensors, scale, causal=mask == "causal")
        found = {"max_error": largest, "mean_error": mean, "reference": "PyTorch attention in float64"}
    found["ours_ms"] = time_ms(torch, call)
    found["sdpa_ms"] = NOT_AVAILABLE
    if mask is not None and (mask == "full" or tensors[0].shape[1] == tensors[1].shape[1]):
        found["sdpa_ms"] = time_ms(torch, lambda: sdpa(torch, tensors, scale, causal=mask == "causal"))
    return found


def errors(torch: Any, out: Any, tensors: tuple[Any, Any, Any], scale: float, *, causal: bool) -> tuple[float, float]:
    """Give the largest and the mean absolute error of an output; NaN where one is NaN."""
    largest, total = 0.0, 0.0
    for place, expected in reference(torch, tensors, scale, causal=causal):
        difference = (out[place].double() - expected).abs()
        if difference.numel():
            top = difference.max().item()
            largest = top if top != top or top > largest else largest
            total += difference.sum().item()
    return largest, total / max(out.numel(), 1)


def reference(torch: Any, tensors: tuple[Any, Any, Any], scale: float, *, causal: bool) -> Iterator[tuple[Any, Any]]:
    """Give the output in float64, some rows of one head at a time, each with its place in the whole.

    Queries are aligned with keys at their ends; a row that sees no key is zero.
    """
    q, k, v = tensors
    (batch, seqlen_q, heads, _), (seqlen_k, kv_heads) = q.shape, k.shape[1:3]
    for b, head, first in ((b, h, f) for b in range(batch) for h in range(heads) for f in range(0, seqlen_q, _ROWS)):
        place = (b, slice(first, first + _ROWS), head)
        rows = q[place].double()
        keys, values = (t[b, :, head * kv_heads // heads].double() for t in (k, v))
        seen = torch.ones(rows.shape[0], seqlen_k, dtype=torch.bool, device=q.device)
        if causal:
            seen = seen.tril(first + seqlen_k - seqlen_q)
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            found = torch.nn.functional.scaled_dot_product_attention(
                rows[None, None], keys[None, None], values[None, None], attn_mask=seen, scale=scale
            )[0, 0]
        yield place, torch.where(seen.any(dim=1, keepdim=True), found, torch.zeros_like(found))


def sdpa(torch: Any, tensors: tuple[Any, Any, Any], scale: float, *, causal: bool) -> Any:
    """Compute the operator with PyTorch's own kernel."""
    q, k, v = (tensor.transpose(1, 2) for tensor in tensors)
    return torch.nn.functional.scaled_dot_product_attention(
        q, k, v, is_causal=causal, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
    )


def time_ms(torch: Any, call: Callable[[], Any]) -> float:
    """Give the median GPU time of one call on the current stream."""
    for _ in range(_WARM_UP):
        call()
    pairs = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(_TIMED)]
    for start, end in pairs:
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    times: list[float] = [start.elapsed_time(end) for start, end in pairs]
    return statistics.median(times)
