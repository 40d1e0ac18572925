"""A100 programs on an H200 against FlashAttention-2 (PyTorch SDPA), in one process.

    python benchmarks/make_bundles.py --set speed --arch sm_90 --out out/speed     # anywhere
    python benchmarks/ampere_forward.py --bundles out/speed --out benchmarks/results

Rows: bf16, D 64 and 128, the six lengths, B and heads of the plain rows, full and causal. Ours and the peer take turns,
graphs replayed over inputs larger than the L2; outputs checked against fp32 before and after timing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from qimeng_attention.bench.results import Case, SpeedRow, provenance
from qimeng_attention.bench.timing import time_eager, time_graphs
from qimeng_attention.runtime import load

L2_BYTES = 60 << 20
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384)
TOKENS = 16384
MOST_ERROR = 1e-2  # relative, of a bf16 result


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, causal: bool) -> torch.Tensor:
    """Attention in fp32 of the first batch entry, heads in turn: (S, H, D)."""
    shared = q.shape[2] // k.shape[2]  # query heads of a key head
    out = []
    for h in range(q.shape[2]):
        s = (q[0, :, h].float() @ k[0, :, h // shared].float().T) / math.sqrt(q.shape[3])
        if causal:
            s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1), -math.inf)
        out.append(torch.softmax(s, -1) @ v[0, :, h // shared].float())
    return torch.stack(out, 1)


def error(found: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error in the Frobenius norm; NaN counts as infinite."""
    value = ((found.float() - expected).norm() / expected.norm()).item()
    return value if math.isfinite(value) else math.inf


def bench(folder: Path, dim: int, mask: str, length: int, rounds: int) -> SpeedRow:
    bundle = load(folder / f"d{dim}_{mask}")
    heads, batch, causal = 2048 // dim, TOKENS // length, mask == "causal"
    one = 4 * batch * length * heads * dim * 2
    sets = max(1, min(4, math.ceil(2 * L2_BYTES / one)))
    shape = (batch, length, heads, dim)
    inputs = [[torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)] for _ in range(sets)]
    outputs = [torch.full(shape, float("nan"), device="cuda", dtype=torch.bfloat16) for _ in range(sets)]
    lses = [torch.full((batch, heads, length), float("nan"), device="cuda") for _ in range(sets)]

    def ours(n: int) -> Any:
        return lambda: bundle(*inputs[n], out=outputs[n], lse=lses[n])

    def peer(n: int) -> Any:
        q, k, v = (x.transpose(1, 2) for x in inputs[n])

        def call() -> torch.Tensor:
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                return F.scaled_dot_product_attention(q, k, v, is_causal=causal)

        return call

    expected = reference(*inputs[0], causal)
    ours(0)()
    before = error(outputs[0][0], expected)
    times = time_graphs({"ours": [ours(n) for n in range(sets)], "fa2": [peer(n) for n in range(sets)]}, rounds)
    fresh = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
    for old, new in zip(inputs[0], fresh, strict=True):
        old.copy_(new)
    ours(0)()
    after = error(outputs[0][0], reference(*inputs[0], causal))
    peer_error = error(peer(0)().transpose(1, 2)[0], reference(*inputs[0], causal))
    assert peer_error < MOST_ERROR, f"the peer is wrong: {peer_error}"
    ours_ms, fa2_ms = times["ours"].median_ms, times["fa2"].median_ms
    case = Case(
        B=batch,
        Hq=heads,
        Hk=heads,
        Sq=length,
        Sk=length,
        Dqk=dim,
        Dv=dim,
        dtype="bf16",
        mask=mask,
        target="A100 built for sm_90",
    )
    return SpeedRow(
        case=case,
        ours_ms=ours_ms,
        peers_ms={"FlashAttention-2": fa2_ms},
        ours_eager_ms=time_eager(ours(0)),
        peers_eager_ms={"FlashAttention-2": time_eager(peer(0))},
        ratio=fa2_ms / ours_ms,
        error_before=before,
        error_after=after,
        bound="" if fa2_ms >= ours_ms else "mma.sync: tensor cores",
        spread=max(t.spread for t in times.values()),
        repetitions=times["ours"].repetitions,
    )


def arguments(doc: str | None, rows: Sequence[str] = ()) -> argparse.Namespace:
    """Read what every benchmark of speeds takes; and which of the rows, where they have names."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit", help="of the tree that runs, where git cannot tell")
    parser.add_argument("--rounds", type=int, default=25)
    if rows:
        parser.add_argument("--rows", nargs="+", choices=rows, help="default: all")
    return parser.parse_args()


def main() -> None:
    args = arguments(__doc__)
    results = provenance("ampere_forward_h200", args.commit)
    rows = []
    for dim in (64, 128):
        for mask in ("full", "causal"):
            for length in LENGTHS:
                row = bench(args.bundles, dim, mask, length, args.rounds)
                rows.append(row)
                flops = 4 * row.case.B * row.case.Hq * length * length * dim * (0.5 if mask == "causal" else 1)
                print(
                    f"D={dim:3} {mask:6} S={length:5}  ours {flops / row.ours_ms / 1e9:6.1f}  fa2 "
                    f"{flops / row.peers_ms['FlashAttention-2'] / 1e9:6.1f} TFLOP/s"
                    f"  ratio {row.ratio:.3f}  error {row.error_before:.4f} "
                    f"{row.error_after:.4f}  spread {row.spread:.1%}",
                    flush=True,
                )
                assert max(row.error_before, row.error_after) < MOST_ERROR, "our output is wrong"
    ratios = [r.ratio for r in rows]
    summary = {
        "geomean": statistics.geometric_mean(ratios),
        "least": min(ratios),
        "rows": len(rows),
        "under_0.95": sum(r < 0.95 for r in ratios),
        "under_1.00": sum(r < 1 for r in ratios),
    }
    results = results.model_copy(update={"rows": rows, "summary": summary})
    print(json.dumps(summary), results.save(args.out))


if __name__ == "__main__":
    main()
