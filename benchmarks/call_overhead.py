"""What a call of a bundle costs the host, beside an empty Python function with the same signature, in one process.

    python benchmarks/call_overhead.py --bundle out/hopper/d128_causal --out benchmarks/results

Eager: the host's time of a call whose kernel is short, with no wait for the GPU in between, less that of the empty
function; `f(q, k, v)`, which allocates its output, and with outputs given. Under a CUDA graph nothing of the call is
left: what remains is the host's time of a replay, divided by the calls in the graph, and the kernel's own time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from qimeng_attention.bench.results import provenance
from qimeng_attention.runtime import load

CALLS, ROUNDS, WARM = 200, 25, 50


def empty(
    q: Any, k: Any, v: Any, *, scale: Any = None, out: Any = None, lse: Any = None, return_lse: bool = False
) -> Any:
    """Do nothing, with the signature of a bundle's call."""
    return out


def host_us(call: Callable[[], Any]) -> tuple[float, float]:
    """Give the median and the least host time of a call in microseconds; the GPU drains between rounds."""
    for _ in range(WARM):
        call()
    found = []
    for _ in range(ROUNDS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(CALLS):
            call()
        found.append((time.perf_counter() - start) / CALLS * 1e6)
    torch.cuda.synchronize()
    return statistics.median(found), min(found)


def graph_us(call: Callable[[], Any]) -> tuple[float, float]:
    """Give the GPU's and the host's time of a call in a graph of many, in microseconds."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        call()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            for _ in range(CALLS):
                call()
        graph.replay()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        before = time.perf_counter()
        graph.replay()
        host = time.perf_counter() - before
        end.record()
    end.synchronize()
    return float(start.elapsed_time(end)) / CALLS * 1e3, host / CALLS * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit")
    args = parser.parse_args()
    bundle = load(args.bundle)
    spec = json.loads(bundle.files["spec.json"])
    heads = [(spec["Hq"], spec["Dqk"]), (spec["Hk"], spec["Dqk"]), (spec["Hk"], spec["Dv"])]
    q, k, v = (torch.randn((1, 64, h, d), device="cuda", dtype=torch.bfloat16) for h, d in heads)
    out = torch.empty((1, 64, spec["Hq"], spec["Dv"]), device="cuda", dtype=torch.bfloat16)
    lse = torch.empty((1, spec["Hq"], 64), device="cuda")
    with torch.no_grad():
        ours, least = host_us(lambda: bundle(q, k, v, out=out, lse=lse))
        allocating, _ = host_us(lambda: bundle(q, k, v))
        nothing, _ = host_us(lambda: empty(q, k, v, out=out, lse=lse))
        in_graph, replayed = graph_us(lambda: bundle(q, k, v, out=out, lse=lse))
    summary = {
        "bundle": args.bundle.name,
        "eager_us": round(allocating - nothing, 2),
        "eager_outputs_given_us": round(ours - nothing, 2),
        "eager_outputs_given_least_us": round(least - nothing, 2),
        "empty_us": round(nothing, 3),
        "graph_kernel_us": round(in_graph, 2),
        "graph_host_us": round(replayed, 3),
        "note": "graph_kernel_us: the GPU's time of the whole kernel at B = 1, S = 64; graph_host_us: the host's time "
        f"of a replay of {CALLS} calls, for each",
    }
    found = provenance("call_overhead_h200", args.commit).model_copy(update={"summary": summary})
    print(json.dumps(summary), found.save(args.out))


if __name__ == "__main__":
    main()
