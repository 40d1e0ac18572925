"""Packed sequences of mixed lengths, causal, against FlashAttention-3: the rows `varlen` of serving.py.

Lengths are drawn from a fixed seed until they make 32,768 tokens: evenly from 64 to 4,096, evenly in their logarithm,
or with a heavy tail, one sequence of 16,384 among short ones. FLOPs count the pairs of query and key that see each
other.
"""

from __future__ import annotations

import math
import random
from pathlib import Path

import torch
from ampere_forward import MOST_ERROR, error

from qimeng_attention.bench.results import Case, SpeedRow
from qimeng_attention.bench.timing import time_eager, time_graphs
from qimeng_attention.runtime import load

DIM = 128
TOKENS = 32_768
LENGTHS = ("even", "mixed", "tail")
ROWS = tuple((lengths, hq, hk) for hq, hk in ((16, 16), (64, 8)) for lengths in LENGTHS)
CHECKED_ROWS = 96  # of a sequence, in float64


def bundle_name(hq: int, hk: int) -> str:
    return f"varlen_{hq}_{hk}"


def drawn(kind: str) -> list[int]:
    """The lengths of a row, always the same."""
    draw, lengths = random.Random(3), [16_384] if kind == "tail" else []
    while (left := TOKENS - sum(lengths)) > 0:
        most = 2_048 if kind == "tail" else 4_096
        length = (
            draw.randint(64, most) if kind == "even" else round(math.exp(draw.uniform(math.log(64), math.log(most))))
        )
        lengths.append(min(length, left))
    draw.shuffle(lengths)
    return lengths


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Some rows of one causal sequence in float64: (rows, Hq, D)."""
    group, length = q.shape[1] // k.shape[1], q.shape[0]
    found = torch.empty(len(rows), q.shape[1], v.shape[2], dtype=torch.float64, device=q.device)
    hidden = torch.arange(length, device=q.device)[None] > rows[:, None]
    for head in range(q.shape[1]):
        scores = q[rows, head].double() @ k[:, head // group].double().T * q.shape[2] ** -0.5
        found[:, head] = torch.softmax(scores.masked_fill(hidden, -math.inf), -1) @ v[:, head // group].double()
    return found


def worst(out: torch.Tensor, inputs: list[torch.Tensor], lengths: list[int]) -> float:
    """The largest relative error of the rows checked: the ends of each sequence, and rows spread over it."""
    start, found = 0, 0.0
    for length in lengths:
        rows = torch.unique(torch.linspace(0, length - 1, min(length, CHECKED_ROWS), device=out.device).long())
        part = slice(start, start + length)
        found = max(found, error(out[part][rows], reference(*(x[part] for x in inputs), rows)))
        start += length
    return found


def varlen(bundles: Path, row: tuple[str, int, int], rounds: int) -> SpeedRow:
    import fa3_fwd_interface as fa3

    kind, hq, hk = row
    bundle, lengths = load(bundles / bundle_name(hq, hk)), drawn(kind)
    inputs = [torch.randn(TOKENS, h, DIM, device="cuda", dtype=torch.bfloat16) for h in (hq, hk, hk)]
    starts = torch.tensor([0, *lengths], device="cuda").cumsum(0).int()
    out, longest = torch.empty_like(inputs[0]), max(lengths)

    def ours() -> torch.Tensor:
        return bundle(*inputs, cu_seqlens_q=starts, cu_seqlens_k=starts, out=out)

    def theirs() -> torch.Tensor:
        given = fa3.flash_attn_varlen_func(*inputs, starts, starts, longest, longest, causal=True)
        return given[0] if isinstance(given, tuple) else given

    before = worst(ours(), inputs, lengths)
    assert worst(theirs(), inputs, lengths) < MOST_ERROR, "FlashAttention-3's output is wrong"
    out.fill_(float("nan"))
    times = time_graphs({"ours": [ours], "FlashAttention-3": [theirs]}, rounds)
    mine, peer = times["ours"].median_ms, times["FlashAttention-3"].median_ms
    flops = 4 * DIM * hq * sum(n * (n + 1) // 2 for n in lengths)
    words = f"{kind}: {len(lengths)} sequences of {min(lengths)} to {longest}, {TOKENS} tokens"
    case = Case(
        B=len(lengths), Hq=hq, Hk=hk, Sq=TOKENS, Sk=TOKENS, Dqk=DIM, Dv=DIM, dtype="bf16", mask="causal",
        mods=words, kind="varlen", target="H200",
    )  # fmt: skip
    made = SpeedRow(
        case=case,
        ours_ms=mine,
        peers_ms={"FlashAttention-3": peer},
        ours_eager_ms=time_eager(ours),
        peers_eager_ms={"FlashAttention-3": time_eager(theirs)},
        ratio=peer / mine,
        error_before=before,
        error_after=worst(out, inputs, lengths),
        bound="",
        spread=max(t.spread for t in times.values()),
        repetitions=times["ours"].repetitions,
    )
    print(
        f"varlen {hq}/{hk} {words}  ours {flops / mine / 1e9:.0f}  FlashAttention-3 {flops / peer / 1e9:.0f} TFLOP/s  "
        f"ratio {made.ratio:.3f}  error {made.error_before:.4f} {made.error_after:.4f}",
        flush=True,
    )
    return made
