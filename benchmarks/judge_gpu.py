"""The judge on kernels that run on an H200: every adversarial input, stratified shapes.

    python benchmarks/make_bundles.py --set judge --arch sm_90 --out out/judge      # anywhere
    python benchmarks/judge_gpu.py --bundles out/judge --out benchmarks/results
    python benchmarks/make_bundles.py --set judge_hopper --out out/judge_hopper
    python benchmarks/judge_gpu.py --bundles out/judge_hopper --name judge_hopper_h200 --target H200 \\
        --out benchmarks/results

With --repeats 10, ten of the kernels, each at the largest shape it was judged at, run once directly and then 1,000
times by replay of a CUDA graph, over poisoned outputs: every bit must be the same.

D 64/128 (the Hopper set: 256 too) x full/causal/window/softcap x fp16/bf16 x MHA/GQA/MQA; kernels run in
processes beside the judges', several at a time.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import re
import time
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path
from typing import Any

from qimeng_attention.bench.results import Case, CorrectnessRow, provenance
from qimeng_attention.judge import Budget, Verdict, judge_bundle
from qimeng_attention.judge.process import Process
from qimeng_attention.spec import AttentionSpec

BUDGET = Budget("survey", heads=None, keys=2048, scores=1 << 23, thorough=True)
REPLAYS = 1000
_SIZES = re.compile(r"B=(\d+) Hq=(\d+) Hk=(\d+) Sk=(\d+) Sq=(\d+)|B=(\d+) Sq=(\d+) Sk=(\d+) Hq=(\d+) Hk=(\d+)")


@cache
def beside() -> Process:
    """Give this process the one in which its kernels run."""
    return Process()


def judge(item: tuple[str, dict[str, Any], Path, int]) -> tuple[str, AttentionSpec, Verdict, float]:
    name, fields, folder, seed = item
    spec = AttentionSpec.make(name=name, **fields)
    start = time.perf_counter()
    verdict = judge_bundle(folder / name, spec, seed=seed, budget=BUDGET, process=beside())
    return name, spec, verdict, time.perf_counter() - start


def keys_of(spec: AttentionSpec) -> str:
    """Say how the keys of a cache lie."""
    return f"pages of {spec.page_size}" if spec.page_size is not None else "lengths" if spec.seqused_k else ""


def rows_of(spec: AttentionSpec, verdict: Verdict, target: str) -> list[CorrectnessRow]:
    """One row for each shape: the checks of all its families of values and both outputs."""
    by_shape: dict[tuple[int, ...], list[Any]] = defaultdict(list)
    for check in verdict.checks:
        found = _SIZES.search(check.case)
        assert found is not None, check.case
        g = [int(x) for x in found.groups() if x is not None]
        shape = (g[0], g[1], g[2], g[4], g[3]) if found[1] is not None else (g[0], g[3], g[4], g[1], g[2])
        by_shape[shape].append(check)
    rows = []
    for (batch, hq, hk, sq, sk), checks in sorted(by_shape.items()):
        worst = max(checks, key=lambda c: c.worst_error / c.bound if c.bound else 0.0)
        case = Case(
            B=batch,
            Hq=hq,
            Hk=hk,
            Sq=sq,
            Sk=sk,
            Dqk=spec.Dqk,
            Dv=spec.Dv,
            dtype=spec.dtype,
            mask=spec.mask,
            mods=", ".join(x for x in (f"softcap {spec.softcap}" if spec.softcap else "", keys_of(spec)) if x),
            kind="varlen" if spec.varlen else "forward",
            target=target,
        )
        families = sorted({c.case.split(",")[0] for c in checks})
        rows.append(
            CorrectnessRow(
                case=case,
                verdict="accepted" if all(c.passed for c in checks) else "rejected",
                checks=len(checks),
                worst_error=worst.worst_error,
                bound=worst.bound,
                detail="; ".join(families),
            )
        )
    return rows


def repeated(folder: Path, row: CorrectnessRow) -> int:
    """Replay one launch; give the number of replays whose output or LSE differs in any bit from a direct call's."""
    import torch

    from qimeng_attention.runtime import load

    bundle, c = load(folder), row.case
    dtype = torch.bfloat16 if c.dtype == "bf16" else torch.float16
    queries, keys, lse_shape = (c.B, c.Sq), (c.B, c.Sk), (c.B, c.Hq, c.Sq)
    named = {}
    if c.kind == "varlen":  # B sequences of one length, packed
        queries, keys, lse_shape = (c.B * c.Sq,), (c.B * c.Sk,), (c.Hq, c.B * c.Sq)
        starts = torch.arange(c.B + 1, device="cuda", dtype=torch.int32)
        named = {"cu_seqlens_q": starts * c.Sq, "cu_seqlens_k": starts * c.Sk}
    shapes = ((*queries, c.Hq, c.Dqk), (*keys, c.Hk, c.Dqk), (*keys, c.Hk, c.Dv))
    inputs = [torch.randn(shape, device="cuda").to(dtype) for shape in shapes]
    out, lse = (
        torch.empty((*queries, c.Hq, c.Dv), device="cuda", dtype=dtype),
        torch.empty(lse_shape, device="cuda"),
    )
    with torch.no_grad():
        expected = [x.clone() for x in bundle(*inputs, out=out, lse=lse, return_lse=True, **named)]
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            bundle(*inputs, out=out, lse=lse, **named)
        different = torch.zeros((), device="cuda", dtype=torch.int32)
        for _ in range(REPLAYS):
            out.fill_(float("nan"))
            lse.fill_(float("nan"))
            graph.replay()
            same = (out.view(torch.int16) == expected[0].view(torch.int16)).all()
            same &= (lse.view(torch.int32) == expected[1].view(torch.int32)).all()
            different += (~same).int()
    return int(different)


def repeats(
    bundles: Path, specs: dict[str, dict[str, Any]], rows: list[tuple[str, CorrectnessRow]], count: int
) -> dict[str, Any]:
    """Repeat kernels spread over the list, each at its largest shape."""
    largest: dict[str, CorrectnessRow] = {}
    for name, row in rows:
        c = row.case
        if (
            name not in largest
            or c.Sq * c.Sk * c.B > largest[name].case.Sq * largest[name].case.Sk * largest[name].case.B
        ):
            largest[name] = row
    names = sorted(name for name in largest if not specs[name].get("tensors"))
    found = {}
    for name in names[:: max(1, len(names) // count)][:count]:
        c = largest[name].case
        different = repeated(bundles / name, largest[name])
        found[name] = {"shape": [c.B, c.Hq, c.Hk, c.Sq, c.Sk], "graph_replays": REPLAYS, "different": different}
        print(
            f"{name:28} {REPLAYS} replays of B, Hq, Hk, Sq, Sk = {found[name]['shape']}: {different} differ", flush=True
        )
    return found


class Judged:
    """What was judged so far."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.named: list[tuple[str, CorrectnessRow]] = []
        self.verdicts: dict[str, str] = {}
        self.checks = 0

    @property
    def rows(self) -> list[CorrectnessRow]:
        """Give the rows alone."""
        return [row for _, row in self.named]

    def add(self, name: str, verdict: Verdict, rows: list[CorrectnessRow]) -> None:
        """Take the verdict of a bundle."""
        self.verdicts[name] = verdict.verdict
        self.checks += len(verdict.checks)
        self.named += [(name, row) for row in rows]

    def summary(self, repeated: dict[str, Any]) -> dict[str, Any]:
        """Count what was judged."""
        shapes = {r.case.model_dump_json() for r in self.rows}
        return {
            "bundles": len(self.verdicts),
            "accepted": sum(v == "accepted" for v in self.verdicts.values()),
            "checks": self.checks,
            "shapes": len(shapes),
            "rejected_rows": sum(r.verdict != "accepted" for r in self.rows),
            "seed": self.seed,
            "repeats": repeated,
            "verdicts": self.verdicts,
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundles", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--name", default="judge_ampere_h200", help="of the results file")
    parser.add_argument("--target", default="A100 built for sm_90", help="what the rows say the kernels are for")
    parser.add_argument("--commit")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("--most", type=int, default=1000, help="judge this many bundles only")
    parser.add_argument("--seconds", type=float, default=3600, help="begin no other bundle after this time")
    parser.add_argument("--repeats", type=int, default=0, help="repeat this many kernels, bit by bit")
    args = parser.parse_args()
    specs = json.loads((args.bundles / "specs.json").read_text())
    items = [(name, fields, args.bundles, args.seed) for name, fields in specs.items()]
    random.Random(0).shuffle(items)  # so that what is done so far is spread over the list, should time run out
    base, judged = provenance(args.name, args.commit), Judged(args.seed)
    found: dict[str, Any] = {}
    start = time.monotonic()
    # NOTE: processes, not threads: the reference's own work would wait for one interpreter.
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way = [pool.submit(judge, item) for item in items[: args.most]]
        for done in as_completed(under_way):
            if time.monotonic() - start > args.seconds:
                for waiting in under_way:
                    waiting.cancel()
            if done.cancelled():
                continue
            name, spec, verdict, seconds = done.result()
            judged.add(name, verdict, rows_of(spec, verdict, args.target))
            weak = [p.name for p in verdict.properties if p.passed is False]
            shown = (
                f"{verdict.verdict:12} {len(verdict.checks):4} checks {seconds:5.1f} s  {verdict.reason[:120]} {weak}"
            )
            print(f"{name:28} {shown}", flush=True)
            base.model_copy(update={"rows": judged.rows, "summary": judged.summary(found)}).save(args.out)
    if args.repeats:
        found = repeats(args.bundles, specs, judged.named, args.repeats)
    summary = judged.summary(found)
    saved = base.model_copy(update={"rows": judged.rows, "summary": summary}).save(args.out)
    print({k: v for k, v in summary.items() if k != "verdicts"}, saved)


if __name__ == "__main__":
    main()
