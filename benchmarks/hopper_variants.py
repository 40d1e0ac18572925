"""H200 programs with masks and score modifiers against FlashAttention-3, -4 and FlexAttention, in one process.

    python benchmarks/make_bundles.py --set variants --out out/variants               # anywhere
    python benchmarks/hopper_variants.py --bundles out/variants --out benchmarks/results

Rows: bf16, 2 x 8192 tokens, 16 heads of 128: causal with a window of 1024, softcap 30, ALiBi, a prefix of 2048
visible keys, and documents of 1500 tokens whose ids are a tensor: with lists of tiles made before the calls, as
FlexAttention's block mask is, and (`documents1500_listing`) made in each call. FlexAttention runs on both of its
backends. All take turns, graphs replayed; outputs are checked against float64 before and after timing. A peer that is
not installed, or refuses a row, is left out and named. `--rows` takes some of the rows.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ampere_forward import MOST_ERROR, arguments, error
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from qimeng_attention.bench.results import Case, SpeedRow, provenance
from qimeng_attention.bench.timing import time_eager, time_graphs
from qimeng_attention.runtime import load

BATCH, HEADS, LENGTH, DIM = 2, 16, 8192, 128
DOCUMENT = 1500  # tokens
LISTING = "documents1500_listing"  # the bundle of documents1500, called without lists
SLOPES = [2 ** (-8 * (h + 1) / HEADS) for h in range(HEADS)]
Call = Callable[..., Any]


def score_of(name: str, slopes: torch.Tensor) -> Call | None:
    """The score modifier as FlexAttention takes it."""
    if name == "softcap30":
        return lambda score, b, h, i, j: 30 * torch.tanh(score / 30)
    if name == "alibi":
        return lambda score, b, h, i, j: score - slopes[h] * (i - j)
    return None


MASKS: dict[str, Call] = {
    "window1024": lambda b, h, i, j: (i >= j) & (i - j <= 1024),
    "softcap30": lambda b, h, i, j: i >= j,
    "alibi": lambda b, h, i, j: i >= j,
    "prefixlm2048": lambda b, h, i, j: (j < 2048) | (i >= j),
}
ROWS = (*MASKS, "documents1500", LISTING)
BUILT_IN: dict[str, dict[str, Any]] = {
    "window1024": {"causal": True, "window_size": (1024, 0)},
    "softcap30": {"causal": True, "softcap": 30.0},
}


def named_tensors(name: str) -> dict[str, torch.Tensor]:
    """What a row's calls hand over besides q, k and v."""
    if not name.startswith("documents"):
        return {}
    ids = torch.arange(LENGTH, device="cuda", dtype=torch.int32) // DOCUMENT
    return {"doc": ids.expand(BATCH, LENGTH).contiguous()}


def mask_of(name: str, named: dict[str, torch.Tensor]) -> Call:
    """The mask as FlexAttention takes it."""
    if name in MASKS:
        return MASKS[name]
    doc = named["doc"]
    return lambda b, h, i, j: (i >= j) & (doc[b, i] == doc[b, j])


def visible_flops(name: str) -> float:
    """The operations on pairs that the mask lets see, where it is documents; 0 elsewhere."""
    if not name.startswith("documents"):
        return 0.0
    lengths = [min(DOCUMENT, LENGTH - start) for start in range(0, LENGTH, DOCUMENT)]
    return BATCH * HEADS * 4 * DIM * sum(n * (n + 1) / 2 for n in lengths)


def reference(name: str, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, slopes: torch.Tensor) -> torch.Tensor:
    """One batch element in float64, a block of rows at a time; (S, H, D)."""
    q, k, v = (x.double().transpose(0, 1) for x in (q, k, v))
    rows, score, mask = [], score_of(name, slopes.double()), mask_of(name, named_tensors(name))
    j = torch.arange(LENGTH, device="cuda")[None, None]
    h = torch.arange(HEADS, device="cuda")[:, None, None]
    for start in range(0, LENGTH, 512):
        i = torch.arange(start, start + 512, device="cuda")[None, :, None]
        s = q[:, start : start + 512] @ k.transpose(1, 2) * DIM**-0.5
        s = s if score is None else score(s, 0, h, i, j)
        rows.append(torch.softmax(s.masked_fill(~mask(0, h, i, j), float("-inf")), -1) @ v)
    return torch.cat(rows, 1).transpose(0, 1)


def libraries(name: str) -> dict[str, Call]:
    """FlashAttention-3 and -4 where they have the variant built in."""
    found: dict[str, Call] = {}
    options = BUILT_IN.get(name)
    if options is None:
        return found
    try:
        import fa3_fwd_interface as fa3

        found["FlashAttention-3"] = lambda q, k, v: fa3.flash_attn_func(q, k, v, **options)
    except ImportError:
        pass
    try:
        from flash_attn.cute import flash_attn_func as fa4

        found["FlashAttention-4"] = lambda q, k, v: fa4(q, k, v, **options)
    except Exception as problem:  # its imports fail in many ways where a part is missing
        print(f"FlashAttention-4 is left out: {problem}")
    return found


def flex(name: str, slopes: torch.Tensor) -> dict[str, Call]:
    """FlexAttention, compiled, on both of its backends."""
    named = named_tensors(name)
    mask = create_block_mask(mask_of(name, named), BATCH if named else None, None, LENGTH, LENGTH)
    score = score_of(name, slopes)

    def on(backend: str) -> Call:
        torch._dynamo.reset()
        compiled = torch.compile(flex_attention, dynamic=False)

        def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
            heads_first = (x.transpose(1, 2) for x in (q, k, v))
            out = compiled(*heads_first, score_mod=score, block_mask=mask, kernel_options={"BACKEND": backend})
            return out.transpose(1, 2)

        return call

    return {"FlexAttention (Triton)": on("TRITON"), "FlexAttention (FA4)": on("FLASH")}


def working(found: dict[str, Call], inputs: list[torch.Tensor]) -> dict[str, Call]:
    """Keep the peers that run; a built-in window that the wheel leaves out gives wrong results or raises."""
    kept = {}
    for peer, call in found.items():
        try:
            first(call(*inputs))
            torch.cuda.synchronize()
            kept[peer] = call
        except Exception as problem:
            print(f"{peer} is left out: {type(problem).__name__}: {str(problem)[:160]}", flush=True)
    return kept


def first(found: Any) -> torch.Tensor:
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


def bench(folder: Path, name: str, rounds: int) -> SpeedRow:
    bundle = load(folder / name.removesuffix("_listing"))
    slopes = torch.tensor(SLOPES, device="cuda")
    shape = (BATCH, LENGTH, HEADS, DIM)  # 67 MB a tensor: more than the L2 holds
    inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    out = torch.full(shape, float("nan"), device="cuda", dtype=torch.bfloat16)
    lse = torch.full((BATCH, HEADS, LENGTH), float("nan"), device="cuda")

    named = named_tensors(name)
    lists = bundle.lists(*inputs, **named) if named and name != LISTING else None

    def ours() -> None:
        bundle(*inputs, out=out, lse=lse, lists=lists, **named)

    ours()
    expected = reference(name, *(x[0] for x in inputs), slopes)
    before = error(out[0], expected)
    peers = {**libraries(name), **flex(name, slopes)}
    known = {}
    for peer, call in working(peers, inputs).items():
        wrong = error(first(call(*inputs))[0], expected)
        if wrong < MOST_ERROR:
            known[peer] = call
        else:
            print(f"{peer} is left out: it computes something else (error {wrong:.3f})", flush=True)
    times = time_graphs({"ours": [ours]} | {p: [lambda c=c: c(*inputs)] for p, c in known.items()}, rounds)
    for old in inputs:
        old.copy_(torch.randn_like(old))
    ours()
    after = error(out[0], reference(name, *(x[0] for x in inputs), slopes))
    peers_ms = {p: times[p].median_ms for p in known}
    ours_ms = times["ours"].median_ms
    return SpeedRow(
        case=Case(
            B=BATCH, Hq=HEADS, Hk=HEADS, Sq=LENGTH, Sk=LENGTH, Dqk=DIM, Dv=DIM, dtype="bf16", mask="causal", mods=name,
            target="H200",
        ),
        ours_ms=ours_ms,
        peers_ms=peers_ms,
        ours_eager_ms=time_eager(ours),
        peers_eager_ms={p: time_eager(lambda c=c: c(*inputs)) for p, c in known.items()},
        ratio=min(peers_ms.values()) / ours_ms,
        error_before=before,
        error_after=after,
        bound="",
        spread=max(t.spread for t in times.values()),
        repetitions=times["ours"].repetitions,
    )  # fmt: skip


def main() -> None:
    args = arguments(__doc__, ROWS)
    results, rows = provenance("hopper_variants_h200", args.commit), []
    with torch.no_grad():
        for name in args.rows or ROWS:
            row = bench(args.bundles, name, args.rounds)
            rows.append(row)
            times = "  ".join(f"{p} {ms:.3f}" for p, ms in {"ours": row.ours_ms, **row.peers_ms}.items())
            print(f"{name:14} {times} ms  ratio {row.ratio:.3f}  error {row.error_before:.4f} {row.error_after:.4f}"
                  f"  spread {row.spread:.1%}", flush=True)  # fmt: skip
            if flops := visible_flops(name):
                speeds = {p: flops / ms / 1e9 for p, ms in {"ours": row.ours_ms, **row.peers_ms}.items()}
                print("  visible TFLOP/s: " + ", ".join(f"{p} {x:.0f}" for p, x in speeds.items()), flush=True)
            assert max(row.error_before, row.error_after) < MOST_ERROR, "our output is wrong"
    summary = {
        "rows": len(rows),
        "ratios": {r.case.mods: round(r.ratio, 4) for r in rows},
        "geomean": statistics.geometric_mean(r.ratio for r in rows),
    }
    results = results.model_copy(update={"rows": rows, "summary": summary})
    print(json.dumps(summary), results.save(args.out))


if __name__ == "__main__":
    main()
