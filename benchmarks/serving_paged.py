"""H200 programs over caches in pages against FlashAttention-3 in one process: one query a sequence, lengths differ.

    python benchmarks/make_bundles.py --set paged --out out/paged                   # anywhere
    python benchmarks/serving_paged.py --bundles out/paged --out benchmarks/results

Rows are 64 sequences with 64/8 heads: pages of 16, 64 and 256 keys in no order, lengths all 8,192 or mixed, and a
dense cache with lengths (page 0). FlashAttention-3's wheel is built without pages: it gets the same keys in a dense
cache, which is the easier task, and is called so. Both take turns as replayed graphs; outputs are checked against
float64 before and after timing. What binds is memory, so each row names the bytes of the keys and values in use a
second.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from ampere_forward import MOST_ERROR, arguments, error
from serving import DIM, reference

from qimeng_attention.bench.results import Case, SpeedRow, provenance
from qimeng_attention.bench.timing import time_eager, time_graphs
from qimeng_attention.runtime import load

BATCH, HQ, HK, MOST_KEYS = 64, 64, 8, 8192
PEER = "FlashAttention-3, dense cache"
PAGES = (16, 64, 256, 0)
LENGTHS: dict[str, Callable[[], torch.Tensor]] = {
    "all 8,192": lambda: torch.full((BATCH,), MOST_KEYS),
    "mixed, 1 to 8,192": lambda: torch.randint(1, MOST_KEYS + 1, (BATCH,), generator=torch.manual_seed(0)),
}


def cache(page: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """Keys and values, the page table, and the row of the flat cache at which each key of each sequence lies."""
    shape = (BATCH, MOST_KEYS, HK, DIM) if page == 0 else (BATCH * MOST_KEYS // page, page, HK, DIM)
    k, v = (torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    if page == 0:
        return k, v, None, torch.arange(BATCH * MOST_KEYS, device="cuda").view(BATCH, MOST_KEYS)
    table = torch.randperm(shape[0], device="cuda", dtype=torch.int32).view(BATCH, MOST_KEYS // page)
    keys = torch.arange(MOST_KEYS, device="cuda")
    return k, v, table, table.long()[:, keys // page] * page + keys % page


def paged(bundles: Path, page: int, lengths: str, rounds: int) -> SpeedRow:
    import fa3_fwd_interface as fa3

    bundle = load(bundles / (f"paged_{page}" if page else "seqused"))
    torch.manual_seed(page)
    q = torch.randn(BATCH, 1, HQ, DIM, device="cuda", dtype=torch.bfloat16)
    (k, v, table, places), used = cache(page), LENGTHS[lengths]().to("cuda", torch.int32)
    named = {"seqused_k": used} | ({"page_table": table} if table is not None else {})
    out, sample = torch.empty_like(q), [0, BATCH // 2, BATCH - 1]
    rows = [places[b, : int(used[b])] for b in sample]
    truth = torch.stack([reference(q[b, 0], *(x.view(-1, HK, DIM)[at] for x in (k, v)))
                         for b, at in zip(sample, rows, strict=True)])  # fmt: skip

    def ours() -> torch.Tensor:
        return bundle(q, k, v, out=out, **named)

    dense = [x.view(-1, HK, DIM)[places] if page else x for x in (k, v)]

    def theirs() -> torch.Tensor:
        return fa3.flash_attn_with_kvcache(q, *dense, cache_seqlens=used, causal=True)

    before = error(ours()[sample, 0], truth)
    assert error(theirs()[sample, 0], truth) < MOST_ERROR, "FlashAttention-3's output is wrong"
    times = time_graphs({"ours": [ours], PEER: [theirs]}, rounds)
    mine, peer = times["ours"].median_ms, times[PEER].median_ms
    case = Case(
        B=BATCH, Hq=HQ, Hk=HK, Sq=1, Sk=MOST_KEYS, Dqk=DIM, Dv=DIM, dtype="bf16", mask="causal", kind="paged",
        mods=f"pages of {page}, lengths {lengths}" if page else f"dense, lengths {lengths}", target="H200",
    )  # fmt: skip
    made = SpeedRow(
        case=case,
        ours_ms=mine,
        peers_ms={PEER: peer},
        ours_eager_ms=time_eager(ours),
        peers_eager_ms={PEER: time_eager(theirs)},
        ratio=peer / mine,
        error_before=before,
        error_after=error(out[sample, 0], truth),
        bound="",
        spread=max(t.spread for t in times.values()),
        repetitions=times["ours"].repetitions,
    )
    moved = 2 * 2 * int(used.sum()) * HK * DIM
    print(
        f"{case.mods}  ours {moved / mine / 1e9:.2f}  {PEER} {moved / peer / 1e9:.2f} TB/s"
        f"  ratio {made.ratio:.3f}  error {made.error_before:.4f} {made.error_after:.4f}",
        flush=True,
    )
    return made


def main() -> None:
    args = arguments(__doc__)
    results, rows = provenance("serving_paged_h200", args.commit), []
    with torch.no_grad():
        for page in PAGES:
            for lengths in LENGTHS:
                rows.append(paged(args.bundles, page, lengths, args.rounds))
                assert max(rows[-1].error_before, rows[-1].error_after) < MOST_ERROR, "our output is wrong"
    ratios = [r.ratio for r in rows]
    summary = {"rows": len(rows), "geomean": statistics.geometric_mean(ratios), "least": min(ratios)}
    print(json.dumps(summary), results.model_copy(update={"rows": rows, "summary": summary}).save(args.out))


if __name__ == "__main__":
    main()
