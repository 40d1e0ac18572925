"""The kernels that models wrote in a trial, on a GPU: the judge's verdicts, and times beside FlexAttention.

    python benchmarks/study_kernels.py two-stage=out/tl vanilla=out/cuda --out benchmarks/results     # on an H200

Each folder holds the bundles of a method, one a request, built for the GPU (sm_90), under the request's name. Each is
judged on the GPU against the request's own reference. The methods' kernels of a request are timed beside each other,
and beside FlexAttention where that can say the operator, compiled and with its block mask made beforehand: replayed
graphs that take turns. All outputs must agree before and after. TFLOP/s count the products of visible pairs.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from qimeng_attention.bench.results import provenance
from qimeng_attention.bench.timing import time_graphs
from qimeng_attention.errors import QimengError
from qimeng_attention.judge import Verdict, judge_bundle_by_function
from qimeng_attention.runtime import load
from qimeng_attention.study.requests import StudyRequest, load_requests

TOKENS, LENGTH = 16384, 4096
MOST_DIFFERENCE = 2e-2  # relative, of two 16-bit results
# keys that a query sees, of heads in turn; the other requests are causal, or full
WINDOWS = {"window": (72,), "tanh_window": (80,), "widening_window": (6, 24, 96)}
FULL = ("softplus_share",)
Score = Callable[..., torch.Tensor]
Wanted = list[tuple[StudyRequest, dict[str, Path]]]  # requests, and a bundle a method


def scores(heads: int, named: dict[str, torch.Tensor]) -> dict[str, Score | None]:
    """Give what FlexAttention can say: a score modifier for each request, None for plain scores."""

    def alibi(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score - torch.exp2(-8.0 * (h + 1) / heads) * (q - k)

    def power_law(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score - named["Power"][h] * torch.log(1.0 + torch.clamp(q - k, min=0))

    def signed_square(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score * torch.abs(score)

    def soft_cap(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return 20.0 * torch.tanh(score / 20.0)

    def log_of_count(score: Any, b: Any, h: Any, q: Any, k: Any) -> Any:
        return score * torch.log(q + 2.0)  # q + 1 keys are seen where Sq = Sk

    return {
        "alibi": alibi,
        "log_of_count": log_of_count,
        "power_law": power_law,
        "signed_square": signed_square,
        "soft_cap": soft_cap,
        "causal_gqa": None,
        "window": None,
        "widening_window": None,
    }


def seen(name: str) -> Score:
    """Give the mask of a request, for Sq = Sk."""
    wide = torch.tensor(WINDOWS.get(name, (1 << 30,)), device="cuda")
    return lambda b, h, q, k: (k <= q) & (q - k < wide[h % len(wide)])


def pairs(name: str) -> float:
    """Count the pairs of query and key that are visible, of one head on average."""
    if name in FULL:
        return float(LENGTH * LENGTH)
    windows = [min(w, LENGTH) for w in WINDOWS.get(name, (LENGTH,))]
    return sum(w * (w + 1) / 2 + (LENGTH - w) * w for w in windows) / len(windows)


def ours(folder: Path, request: StudyRequest, x: dict[str, torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Give a call of the bundle, and what it writes."""
    bundle = load(folder)
    out = {"Out": torch.full((*x["Q"].shape[:3], request.head_dims["Dv"]), math.nan, device="cuda", dtype=x["Q"].dtype)}
    if "LSE" in request.outputs:
        batch, length, heads = x["Q"].shape[:3]
        out["Lse"] = torch.empty((batch, heads, length), device="cuda")
    scale = {"scale": request.head_dims["Dqk"] ** -0.5}
    known = {"B": TOKENS // LENGTH, "Sq": LENGTH, "Sk": LENGTH, **request.heads}
    sizes = {name: known[name] for name in bundle.manifest.sizes}
    return lambda: bundle.launch({**x, **out}, sizes, scale), out["Out"]


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


def inputs(request: StudyRequest) -> dict[str, torch.Tensor]:
    hq, hk, batch = request.heads["Hq"], request.heads["Hk"], TOKENS // LENGTH
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[request.dtype]
    dims = {
        "Q": (hq, request.head_dims["Dqk"]),
        "K": (hk, request.head_dims["Dqk"]),
        "V": (hk, request.head_dims["Dv"]),
    }
    found = {n: torch.randn((batch, LENGTH, *d), device="cuda", dtype=dtype) for n, d in dims.items()}
    known = {"B": batch, "Sq": LENGTH, "Sk": LENGTH, "Hq": hq, "Hk": hk}
    return found | {n: torch.randn([known[d] for d in t.dims], device="cuda") for n, t in request.tensors.items()}


def timed(folders: dict[str, Path], request: StudyRequest, rounds: int) -> dict[str, Any]:
    """Time a request's kernels, one a method, beside FlexAttention where that can say the operator."""
    x = inputs(request)
    made = {method: ours(folder, request, x) for method, folder in folders.items()}
    calls: dict[str, list[Callable[[], Any]]] = {method: [call] for method, (call, _) in made.items()}
    said = scores(request.heads["Hq"], x)
    if request.name in said:
        q, k, v = (x[n].transpose(1, 2) for n in "QKV")
        mask = create_block_mask(seen(request.name), None, None, LENGTH, LENGTH, device="cuda")
        compiled = torch.compile(flex_attention)
        grouped = request.heads["Hq"] != request.heads["Hk"]

        def flex() -> Any:
            return compiled(q, k, v, score_mod=said[request.name], block_mask=mask, enable_gqa=grouped)

        calls["FlexAttention"] = [flex]
    compare(request.name, made, calls)
    times = time_graphs(calls, rounds)
    compare(request.name, made, calls)
    flops = 2 * (TOKENS // LENGTH) * request.heads["Hq"] * pairs(request.name) * sum(request.head_dims.values())
    found: dict[str, Any] = {"tflops": {name: round(flops / t.median_ms / 1e9, 1) for name, t in times.items()}}
    found["ms"] = {name: t.median_ms for name, t in times.items()}
    first = next(iter(folders))
    of = {n: round(t.median_ms / times[first].median_ms, 3) for n, t in times.items() if n != first}
    return found | ({"ratio": of} if of else {})


def compare(
    name: str, made: dict[str, tuple[Callable[[], None], torch.Tensor]], calls: dict[str, list[Callable[[], Any]]]
) -> None:
    """Run everything once, and refuse to time what does not agree."""
    outputs: dict[str, torch.Tensor] = {}
    for method, (call, out) in made.items():
        out.fill_(math.nan)
        call()
        outputs[method] = out
    if "FlexAttention" in calls:
        outputs["FlexAttention"] = calls["FlexAttention"][0]().transpose(1, 2)
    torch.cuda.synchronize()
    first, *rest = outputs.items()
    for method, out in rest:
        apart = difference(out, first[1])
        assert apart < MOST_DIFFERENCE, f"{name}: {method} is {apart:.3g} from {first[0]}"


def judge_all(wanted: Wanted, jobs: int) -> dict[tuple[str, str], Verdict | str]:
    """Judge every kernel, several at a time; what cannot be judged gives its reason as text."""

    def judge(request: StudyRequest, folder: Path) -> Verdict | str:
        try:
            return judge_bundle_by_function(folder, request.reference, seed=1)
        except QimengError as error:
            return str(error)

    with ThreadPoolExecutor(jobs) as pool:
        asked = {(r.name, m): pool.submit(judge, r, folder) for r, folders in wanted for m, folder in folders.items()}
        return {key: answer.result() for key, answer in asked.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="+", metavar="METHOD=FOLDER", help="the first is what ratios are of")
    parser.add_argument("--requests", type=Path, default=Path("benchmarks/study/requests"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="study_kernels_h200")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--jobs", type=int, default=8, help="how many are judged at the same time")
    parser.add_argument("--commit")
    args = parser.parse_args()
    results = provenance(args.name, args.commit)
    rows = []
    methods = {name: Path(folder) for name, _, folder in (b.partition("=") for b in args.bundles)}
    wanted: Wanted = []
    for request in load_requests(args.requests):
        found = {m: f / request.name for m, f in methods.items() if (f / request.name / "manifest.json").is_file()}
        wanted += [(request, found)] if found else []
    judged = judge_all(wanted, args.jobs)
    for request, folders in wanted:
        row: dict[str, Any] = {"request": request.name, "stratum": request.stratum, "target": request.target}
        row |= {"verdict": {}, "checks": {}, "reason": {}}
        for method in folders:
            verdict = judged[request.name, method]
            row["verdict"][method] = verdict if isinstance(verdict, str) else verdict.verdict
            row["checks"][method] = 0 if isinstance(verdict, str) else len(verdict.checks)
            row["reason"][method] = "" if isinstance(verdict, str) else verdict.reason
        try:
            kept = {m: f for m, f in folders.items() if row["verdict"][m] == "accepted"}
            row |= timed(kept, request, args.rounds) if kept else {}
        except (QimengError, AssertionError) as error:
            row |= {"error": str(error)}
        rows.append(row)
        print(json.dumps(row), flush=True)
    verdicts = [v for r in rows for v in r.get("verdict", {}).values()]
    summary = {"kernels": len(verdicts), "accepted": verdicts.count("accepted"), "rows": rows}
    summary |= {"length": LENGTH, "tokens": TOKENS}
    print(results.model_copy(update={"summary": summary}).save(args.out))


if __name__ == "__main__":
    main()
