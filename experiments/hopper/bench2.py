"""Check and time bundles against FA3: bench2.py FOLDER [D,S,causal,Hq,Hk ...]."""

import json
import os
import random
import statistics
import sys
from pathlib import Path

import torch

from qimeng_attention.runtime import load


def graph(fn):
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        fn()
        torch.cuda.synchronize()
        g = torch.cuda.CUDAGraph()
        with torch.cuda.graph(g, stream=stream):
            fn()
    torch.cuda.synchronize()
    return g


def reference(q, k, v, causal):
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    rep = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(rep, 1) for x in (k, v))
    s = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if causal:
        s = s.masked_fill(torch.ones_like(s, dtype=torch.bool).triu(1 + s.shape[3] - s.shape[2]), float("-inf"))
    return (torch.softmax(s, -1).nan_to_num() @ v).transpose(1, 2), torch.logsumexp(s, -1)


SHAPES = [
    (1, 1, 1),
    (1, 128, 128),
    (2, 129, 257),
    (1, 64, 65),
    (2, 333, 401),
    (1, 401, 333),
    (1, 7, 1000),
    (1, 300, 0),
    (3, 255, 256),
    (1, 1000, 17),
]


def check(b, D, causal):
    worst = 0.0
    for B, Sq, Sk in SHAPES:
        for Hq, Hk in ((4, 2), (3, 3)):
            q, k, v = (
                torch.randn(B, s, h, D, device="cuda").to(torch.bfloat16) for s, h in ((Sq, Hq), (Sk, Hk), (Sk, Hk))
            )
            out = torch.full_like(q, float("nan"))
            o, lse = b(q, k, v, out=out, return_lse=True, scale=D**-0.5)
            torch.cuda.synchronize()
            r, rl = reference(q, k, v, causal)
            e = float((o.double() - r).norm() / (r.norm() + 1e-9))
            el = float((lse.double() - rl).nan_to_num(0, 0, 0).abs().max())
            same = bool((torch.isinf(lse) == torch.isinf(rl)).all())
            if not (e < 6e-3 and el < 1e-3 and same):
                print("   BAD", B, Sq, Sk, Hq, Hk, e, el, same)
            worst = max(worst, e)
    return worst


def main():
    reps = int(os.environ.get("REPS", "50"))
    bundles = {p.parent.name: load(p.parent) for p in sorted(Path(sys.argv[1]).glob("*/manifest.json"))}
    import fa3_fwd_interface as fa3

    meta = {}
    for n, b in bundles.items():
        t = b.manifest.tensor("Q")
        meta[n] = (int(t.dims[3]), "full" not in n)
        with torch.no_grad():
            print(n, meta[n], "worst", check(b, *meta[n]), flush=True)
    rows = []
    for case in sys.argv[2:]:
        D, S, causal, Hq, Hk = (int(x) for x in case.split(","))
        B = 16384 // S
        sets = 1 if S >= 4096 else 2
        data = [[torch.randn(B, S, h, D, device="cuda").to(torch.bfloat16) for h in (Hq, Hk, Hk)] for _ in range(sets)]
        calls = {
            n: (lambda b: lambda: [b(*x, scale=D**-0.5) for x in data])(b)
            for n, b in bundles.items()
            if meta[n] == (D, bool(causal))
        }
        calls["fa3"] = lambda: [fa3.flash_attn_func(*x, causal=bool(causal)) for x in data]
        with torch.no_grad():
            graphs = {n: graph(f) for n, f in calls.items()}
        times = {n: [] for n in calls}
        order = random.Random(0)
        for _ in range(reps):
            for n, g in order.sample(sorted(graphs.items()), len(graphs)):
                a, e = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                a.record()
                g.replay()
                e.record()
                times[n].append((a, e))
        torch.cuda.synchronize()
        ms = {n: statistics.median(a.elapsed_time(b) for a, b in t) / sets for n, t in times.items()}
        flops = 4 * B * Hq * S * S * D * (0.5 if causal else 1)
        print(case)
        for n in sorted(ms, key=ms.get):
            print(f"   {n:36} {flops / ms[n] / 1e9:6.1f} TF  {ms['fa3'] / ms[n]:.3f}", flush=True)
        rows.append({"case": case, "ms": ms})
        del graphs, calls, data
    (Path(os.environ.get("OUT", ".")) / "rows.json").write_text(json.dumps(rows))


main()
