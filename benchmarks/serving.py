"""H200 programs for serving against FlashAttention-3 in one process: decoding with one query a sequence, and packed
sequences of mixed lengths (serving_varlen.py) where their bundles are there.

    python benchmarks/make_bundles.py --set decode --out out/serving                 # anywhere
    python benchmarks/make_bundles.py --set varlen --out out/serving
    python benchmarks/serving.py --bundles out/serving --out benchmarks/results

Rows are the decode rows of PERFORMANCE.md. Both take turns as replayed graphs; outputs are checked against float64
before and after timing. What binds is memory, so each row names the bytes of K and V a second.
"""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import torch
from ampere_forward import MOST_ERROR, arguments, error
from serving_varlen import ROWS as VARLEN
from serving_varlen import bundle_name, varlen

from qimeng_attention.bench.results import Case, SpeedRow, provenance
from qimeng_attention.bench.timing import time_eager, time_graphs
from qimeng_attention.runtime import load

DIM = 128
DECODE = ((64, 64, 8, 8192), (8, 64, 8, 8192), (1, 32, 8, 131072), (32, 32, 32, 4096))  # B, Hq, Hk, Sk
BINDS = {
    (64, 64, 8, 8192): "memory: 4.27 TB/s is what a copy reaches; tried: 1 to 12 parts, three stages, tiles of 64, 80 "
    "and 128 keys, parts before heads",
    (1, 32, 8, 131072): "the second kernel, 5 of 139 us: its launch and one wait for 16 parts; tried: rows of 64, no "
    "unrolling (+7 us), 4 and 8 parts on their way",
}


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """One sequence in float64: (Hq, D)."""
    group = q.shape[0] // k.shape[1]
    scores = torch.einsum("ghd,kgd->ghk", q.double().view(-1, group, DIM), k.double()) * DIM**-0.5
    return torch.einsum("ghk,kgd->ghd", torch.softmax(scores, -1), v.double()).reshape(q.shape)


def decode(bundles: Path, row: tuple[int, int, int, int], rounds: int) -> SpeedRow:
    import fa3_fwd_interface as fa3

    batch, hq, hk, keys = row
    bundle = load(bundles / f"decode_{hq}_{hk}")
    q = torch.randn(batch, 1, hq, DIM, device="cuda", dtype=torch.bfloat16)
    k, v = (torch.randn(batch, keys, hk, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    lengths = torch.full((batch,), keys, device="cuda", dtype=torch.int32)
    out, sample = torch.empty_like(q), sorted({0, batch // 2, batch - 1})
    truth = torch.stack([reference(q[b, 0], k[b], v[b]) for b in sample])

    def ours() -> torch.Tensor:
        return bundle(q, k, v, out=out)

    def theirs() -> torch.Tensor:
        return fa3.flash_attn_with_kvcache(q, k, v, cache_seqlens=lengths, causal=True)

    before = error(ours()[sample, 0], truth)
    assert error(theirs()[sample, 0], truth) < MOST_ERROR, "FlashAttention-3's output is wrong"
    times = time_graphs({"ours": [ours], "FlashAttention-3": [theirs]}, rounds)
    mine, peer = times["ours"].median_ms, times["FlashAttention-3"].median_ms
    case = Case(
        B=batch, Hq=hq, Hk=hk, Sq=1, Sk=keys, Dqk=DIM, Dv=DIM, dtype="bf16", mask="full", kind="decode", target="H200"
    )
    made = SpeedRow(
        case=case,
        ours_ms=mine,
        peers_ms={"FlashAttention-3": peer},
        ours_eager_ms=time_eager(ours),
        peers_eager_ms={"FlashAttention-3": time_eager(theirs)},
        ratio=peer / mine,
        error_before=before,
        error_after=error(out[sample, 0], truth),
        bound=BINDS.get(row, "") if peer < mine else "",
        spread=max(t.spread for t in times.values()),
        repetitions=times["ours"].repetitions,
    )
    moved = 2 * k.numel() * k.element_size()
    print(
        f"decode {hq}/{hk} B={batch} S={keys}  ours {moved / mine / 1e9:.2f}  FlashAttention-3 {moved / peer / 1e9:.2f}"
        f" TB/s  ratio {made.ratio:.3f}  error {made.error_before:.4f} {made.error_after:.4f}",
        flush=True,
    )
    return made


def main() -> None:
    args = arguments(__doc__)
    results, rows = provenance("serving_h200", args.commit), []
    with torch.no_grad():
        packed = [row for row in VARLEN if (args.bundles / bundle_name(*row[1:])).exists()]
        todo = [(decode, row) for row in DECODE if (args.bundles / f"decode_{row[1]}_{row[2]}").exists()]
        for measure, row in [*todo, *((varlen, row) for row in packed)]:
            rows.append(measure(args.bundles, row, args.rounds))
            assert max(rows[-1].error_before, rows[-1].error_after) < MOST_ERROR, "our output is wrong"
    ratios = [r.ratio for r in rows]
    summary = {"rows": len(rows), "geomean": statistics.geometric_mean(ratios), "least": min(ratios)}
    print(json.dumps(summary), results.model_copy(update={"rows": rows, "summary": summary}).save(args.out))


if __name__ == "__main__":
    main()
