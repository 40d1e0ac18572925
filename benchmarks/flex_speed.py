"""Judges the bundles of FlexAttention's callables on a GPU, and times them beside FlexAttention itself.

Both get the same callables, captured tensors and values. FlexAttention is compiled, for Triton and, where
FlashAttention-4 is installed and takes the callable, for that; its block mask is made beforehand, and so are our lists
of tiles. All take turns as replayed graphs; each output is compared with a float64 reference that evaluates the
callable itself, before and after timing. What is left out is named, with the reason.

Not here: the operators (flex_catalogue.py), the command (flex_mods.py).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import multiprocessing
import os
import re
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from flex_catalogue import FULL, SMALL, Mods, Sizes, accepted, refused
from flex_mods import DIM, digest, traced
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from qimeng_attention.bench.results import Case, Results, SpeedRow, provenance
from qimeng_attention.bench.timing import Times, time_eager, time_graphs
from qimeng_attention.errors import LaunchError, QimengError
from qimeng_attention.integrations.flex import FlexOperator
from qimeng_attention.judge import judge_bundle
from qimeng_attention.judge.inputs import Budget
from qimeng_attention.runtime import load
from qimeng_attention.tl.parser import parse_expression
from qimeng_attention.tl.traverse import names_in

NAME = "flex_mods_h200"
ON_GPU = Budget("flex", heads=None, keys=4200, scores=1 << 27, thorough=False)
MOST_ERROR = 1e-2  # relative, of a bf16 result
BACKENDS = {"FlexAttention (Triton)": "TRITON", "FlexAttention (FA4)": "FLASH"}
COMPILERS = {
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # each process compiles by itself
    "FLASH_ATTENTION_CUTE_DSL_CACHE_ENABLED": "1",  # what one process compiled, another finds
}
AHEAD = 0.45  # of the time, for judging and compiling in processes beside this one
Call = Callable[[], torch.Tensor]
Compiler = Callable[[Callable[..., Any]], Callable[..., Any]]


# ------------------------------------------------------------------ one operator's calls


@dataclass
class Inputs:
    """Q, K and V as each side has them: ours (B, S, H, D), FlexAttention's (B, H, S, D)."""

    ours: list[torch.Tensor]
    theirs: list[torch.Tensor]

    @classmethod
    def of(cls, sizes: Sizes, device: str) -> Inputs:
        """Draw them."""
        lengths = (sizes.Sq, sizes.Sk, sizes.Sk)
        ours = [torch.randn(sizes.B, n, sizes.H, DIM, device=device, dtype=torch.bfloat16) for n in lengths]
        return cls(ours, [x.transpose(1, 2).contiguous() for x in ours])

    def draw_anew(self) -> None:
        """Fill the same tensors with other values."""
        for x, y in zip(self.ours, self.theirs, strict=True):
            x.copy_(torch.randn_like(x))
            y.copy_(x.transpose(1, 2))


def block_mask(given: Mods, operator: FlexOperator, sizes: Sizes, device: str) -> Any:
    """Make FlexAttention's lists of blocks, for each batch entry and head only where the mask tells them apart."""
    if given.mask_mod is None:
        return None
    read = names_in(parse_expression(operator.spec.mask)) if operator.spec.mask != "full" else set()
    batch, heads = sizes.B if "b" in read else None, sizes.H if "h" in read else None
    return create_block_mask(given.mask_mod, batch, heads, sizes.Sq, sizes.Sk, device=device)


def for_one_shape(f: Callable[..., Any], mode: str | None = None) -> Callable[..., Any]:
    """Compile FlexAttention for one shape; numbers that a callable captured are then constants."""
    return torch.compile(f, dynamic=False, mode=mode)  # type: ignore[no-any-return]


def flex_calls(given: Mods, mask: Any, inputs: Inputs, compiler: Compiler) -> dict[str, Call]:
    """Give FlexAttention, compiled for one shape, on each backend."""
    torch._dynamo.reset()  # NOTE: it compiles one function at most eight times; an operator begins anew
    compiled = compiler(flex_attention)

    def on(backend: str) -> Call:
        options = {"BACKEND": backend}

        def call() -> torch.Tensor:
            found = compiled(*inputs.theirs, score_mod=given.score_mod, block_mask=mask, kernel_options=options)
            return found.transpose(1, 2)  # type: ignore[no-any-return]

        return call

    return {name: on(backend) for name, backend in BACKENDS.items()}


def our_call(folder: Path, operator: FlexOperator, inputs: Inputs) -> Call:
    """Give our kernel as a call, its lists of tiles made beforehand where it has some, as a block mask is."""
    q, k, v = inputs.ours
    given: dict[str, Any] = {"tensors": operator.tensors, "out": torch.full_like(q, float("nan"))}
    given["lse"] = torch.full((q.shape[0], q.shape[2], q.shape[1]), float("nan"), device=q.device)
    attention = load(folder)
    if hasattr(attention, "lists"):
        with contextlib.suppress(LaunchError):  # a kernel without lists says so; whatever else is wrong, the call tells
            given["lists"] = attention.lists(q, k, v, tensors=operator.tensors)
    return lambda: attention(q, k, v, **given)


def reference(given: Mods, inputs: Inputs, places: list[tuple[int, int]]) -> torch.Tensor:
    """Attention in float64 for some batch entries and heads, scores and mask by the callables: (places, Sq, D)."""
    found = []
    for b, h in places:
        q, k, v = (x[b, :, h].double() for x in inputs.ours)
        scores = q @ k.T * DIM**-0.5
        at = [torch.tensor(n, device=q.device, dtype=torch.int32) for n in (b, h)]
        at += [torch.arange(n, device=q.device, dtype=torch.int32) for n in scores.shape]
        if given.score_mod is not None:
            scores = _over_places(given.score_mod, 1)(scores, *at).double()
        if given.mask_mod is not None:
            scores = torch.where(_over_places(given.mask_mod, 0)(*at), scores, -math.inf)
        found.append(torch.softmax(scores, -1).nan_to_num(0.0) @ v)  # a row that sees nothing gives 0
    return torch.stack(found)


def _over_places(f: Callable[..., Any], scores: int) -> Callable[..., Any]:
    over_keys = torch.vmap(f, in_dims=(*[0] * scores, None, None, None, 0))
    return torch.vmap(over_keys, in_dims=(*[0] * scores, None, None, 0, None))


def error(out: torch.Tensor, expected: torch.Tensor, places: list[tuple[int, int]]) -> float:
    """Relative error in the Frobenius norm; NaN counts as infinite."""
    found = torch.stack([out[b, :, h] for b, h in places]).double()
    value = ((found - expected).norm() / expected.norm()).item()
    return value if math.isfinite(value) else math.inf


# ------------------------------------------------------------------ one operator's row


@dataclass
class Timed:
    """What came of one operator: its row, or why there is none, and the peers that were left out."""

    row: SpeedRow | None
    left_out: dict[str, str]


@dataclass
class Bench:
    """How operators are timed; the tests put a CPU in place of the GPU."""

    device: str = "cuda"
    rounds: int = 25
    compiler: Compiler = for_one_shape
    time_calls: Callable[[dict[str, list[Call]], int], dict[str, Times]] = time_graphs  # type: ignore[assignment]
    time_eager: Callable[[Call], float] = time_eager

    def one(
        self,
        given: Mods,
        operator: FlexOperator,
        sizes: Sizes,
        make_ours: Callable[[Inputs], Call],
        failed: Mapping[str, str] | None = None,
    ) -> Timed:
        """Time one operator beside FlexAttention, but for peers that are known to have failed."""
        places = sorted({(0, 0), (sizes.B - 1, sizes.H // 2), (0, sizes.H - 1)})
        inputs = Inputs.of(sizes, self.device)
        ours, left_out = make_ours(inputs), dict(failed or {})
        expected = reference(given, inputs, places)
        calls = {"ours": ours}
        before = error(ours(), expected, places)
        mask = block_mask(given, operator, sizes, self.device)
        for peer, call in flex_calls(given, mask, inputs, self.compiler).items():
            if peer in left_out:
                continue
            if reason := self._fault(call, expected, places):
                left_out[peer] = reason
            else:
                calls[peer] = call
        if before >= MOST_ERROR or len(calls) == 1:
            reason = f"our output is off by {before:.3g}" if before >= MOST_ERROR else "no peer runs it"
            return Timed(None, left_out | {"ours": reason})
        times = self.time_calls({name: [call] for name, call in calls.items()}, self.rounds)
        eager = {name: self.time_eager(call) for name, call in calls.items()}
        inputs.draw_anew()
        expected = reference(given, inputs, places)
        after = {name: error(call(), expected, places) for name, call in calls.items()}
        if wrong := {name: f"off by {e:.3g} after timing" for name, e in after.items() if e >= MOST_ERROR}:
            return Timed(None, left_out | wrong)
        return Timed(_row(operator, sizes, times, eager, (before, after["ours"])), left_out)

    def _fault(self, call: Call, expected: torch.Tensor, places: list[tuple[int, int]]) -> str:
        """Say why a peer cannot be timed; nothing where it can."""
        try:
            off = error(call(), expected, places)
        except Exception as problem:  # compilers fail in many ways; each is told, none ends the run
            return _sentence(problem)
        return f"its output is off by {off:.3g}" if off >= MOST_ERROR else ""


def _sentence(problem: BaseException) -> str:
    """Give the first line of an error; compilers wrap those of others."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    return f"{type(problem).__name__}: {lines[0][:200] if lines else 'no message'}"


def _row(
    operator: FlexOperator, sizes: Sizes, times: dict[str, Times], eager: dict[str, float], errors: tuple[float, float]
) -> SpeedRow:
    peers = {name: t.median_ms for name, t in times.items() if name != "ours"}
    spec = operator.spec
    return SpeedRow(
        case=Case(
            B=sizes.B, Hq=sizes.H, Hk=sizes.H, Sq=sizes.Sq, Sk=sizes.Sk, Dqk=DIM, Dv=DIM, dtype=spec.dtype,
            mask=spec.mask, mods=str(spec.name), target="H200",
        ),
        ours_ms=times["ours"].median_ms,
        peers_ms=peers,
        ours_eager_ms=eager["ours"],
        peers_eager_ms={name: eager[name] for name in peers},
        ratio=min(peers.values()) / times["ours"].median_ms,
        error_before=errors[0],
        error_after=errors[1],
        bound="",
        spread=max(t.spread for t in times.values()),
        repetitions=times["ours"].repetitions,
    )  # fmt: skip


# ------------------------------------------------------------------ judging and compiling ahead, in other processes


@cache
def _operators() -> dict[str, Mods]:
    return accepted(FULL, "cuda")


def judge(name: str, folder: Path, seed: int) -> dict[str, str]:
    """Judge one bundle; give the verdict and its reason."""
    operator = traced(name, _operators()[name], FULL)
    try:
        verdict = judge_bundle(folder, operator.spec, seed=seed, budget=ON_GPU)
    except QimengError as problem:
        return {"verdict": "rejected", "reason": problem.message}
    return {"verdict": verdict.verdict, "reason": verdict.reason}


def compile_ahead(name: str, mode: str | None) -> dict[str, str]:
    """Fill the compilers' caches on disk with one operator's kernels; give the peers that fail, and why.

    NOTE: a kernel that breaks the CUDA context breaks this process's, not that of the one that times.
    """
    given = _operators()[name]
    sizes, failed = given.sizes(FULL), {}
    inputs = Inputs.of(sizes, "cuda")
    mask = block_mask(given, traced(name, given, FULL), sizes, "cuda")
    for peer, call in flex_calls(given, mask, inputs, partial(for_one_shape, mode=mode)).items():
        try:
            call()
            torch.cuda.synchronize()
        except torch.OutOfMemoryError:  # other processes are at work too
            continue
        except Exception as problem:
            failed[peer] = _sentence(problem)
    return failed


def _beside(jobs: int, seconds: float, tasks: dict[str, tuple[Any, ...]]) -> Iterator[tuple[str, dict[str, str]]]:
    """Run tasks in processes of their own, for a time; what has not ended then is left."""
    for name, value in COMPILERS.items():
        os.environ.setdefault(name, value)
    pool = ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn"))
    waiting: dict[Future[dict[str, str]], str] = {pool.submit(*task): label for label, task in tasks.items()}
    end = time.monotonic() + seconds
    while waiting and time.monotonic() < end:
        done, _ = wait(waiting, timeout=max(0.0, end - time.monotonic()), return_when="FIRST_COMPLETED")
        for future in done:
            label = waiting.pop(future)
            if (problem := future.exception()) is not None:
                print(f"{label}: {_sentence(problem)}", flush=True)
            else:
                yield label, future.result()
    processes = list((pool._processes or {}).values())
    pool.shutdown(wait=not waiting, cancel_futures=True)
    for process in processes if waiting else []:
        process.kill()


# ------------------------------------------------------------------ all operators


@dataclass
class Campaign:
    """What was found so far, kept in the results file after each step."""

    results: Results
    out: Path
    made: dict[str, dict[str, Any]]  # what --make said, by operator
    verdicts: dict[str, dict[str, str]] = field(default_factory=dict)
    left_out: dict[str, dict[str, str]] = field(default_factory=dict)
    rows: dict[str, SpeedRow] = field(default_factory=dict)
    bundles: dict[str, str] = field(default_factory=dict)  # which bundle was judged and timed

    @classmethod
    def begin(cls, bundles: Path, out: Path, commit: str | None) -> Campaign:
        """Take up what the results file holds of the same bundles, on the same device and PyTorch."""
        files = {name: bundles / "mods" / f"{name}.json" for name in {**accepted(SMALL), **refused(SMALL)}}
        made = {name: json.loads(path.read_text("utf-8")) for name, path in files.items() if path.is_file()}
        campaign = cls(provenance(NAME, commit), out, made)
        for name in campaign.ready:
            digests = json.dumps(dict(load(bundles / "bundles" / name).manifest.files), sort_keys=True)
            campaign.bundles[name] = hashlib.sha256(digests.encode()).hexdigest()[:20]
        path = out / f"{NAME}.json"
        if path.is_file():
            campaign._take_up(Results.load(path))
        return campaign

    def _take_up(self, old: Results) -> None:
        if (old.device, old.packages) != (self.results.device, self.results.packages):
            return
        same = {n for n, key in old.summary.get("bundles", {}).items() if self.bundles.get(n) == key}
        self.rows = {r.case.mods: r for r in old.rows if isinstance(r, SpeedRow) and r.case.mods in same}
        self.verdicts = {n: v for n, v in old.summary["verdicts_gpu"].items() if n in same}
        self.left_out = {n: v for n, v in old.summary["left_out"].items() if n in same}

    @property
    def ready(self) -> list[str]:
        """Give the operators that have a bundle."""
        return [n for n, m in self.made.items() if m["accepted"] and not m["error"]]

    def save(self) -> Path:
        """Write everything."""
        ratios = [r.ratio for r in self.rows.values()]
        taken = {n: m for n, m in self.made.items() if m["accepted"]}
        summary = {
            "mods": len(self.made),
            "accepted": len(taken),
            "rows": len(self.rows),
            "geomean": statistics.geometric_mean(ratios) if ratios else 0.0,
            "least": min(ratios, default=0.0),
            "verdicts_cpu": {n: {"verdict": m["verdict"], "reason": m["reason"]} for n, m in taken.items()},
            "verdicts_gpu": self.verdicts,
            "refused": {n: m["error"] for n, m in self.made.items() if not m["accepted"]},
            "not_made": {n: m["error"] for n, m in taken.items() if m["error"]},
            "tensors": {n: m["tensors"] for n, m in taken.items()},
            "left_out": self.left_out,
            "bundles": self.bundles,
        }
        rows = [self.rows[n] for n in self.made if n in self.rows]
        return self.results.model_copy(update={"rows": rows, "summary": summary}).save(self.out)


def measure_all(args: argparse.Namespace) -> None:
    """Judge, and with --run time, what the results file lacks."""
    start = time.monotonic()
    campaign = Campaign.begin(args.bundles, args.out, args.commit)
    names = [n for n in campaign.ready if re.search(args.only, n)]
    folder = args.bundles / "bundles"
    tasks: dict[str, tuple[Any, ...]] = {}
    seed = int(time.time())
    for name in names:
        if name not in campaign.verdicts:
            tasks[f"judge {name}"] = (judge, name, folder / name, seed)
        if args.run and name not in campaign.rows:
            tasks[f"compile {name}"] = (compile_ahead, name, args.mode)
    share, failed = AHEAD if args.run else 1.0, {}
    for label, found in _beside(args.jobs, share * args.seconds, tasks):
        step, _, name = label.partition(" ")
        if step == "judge":
            campaign.verdicts[name] = found
            print(f"{name:22} {found['verdict']} by the judge on the GPU: {found['reason'][:120]}", flush=True)
            campaign.save()
        else:
            failed[name] = found
    print(f"judged and compiled ahead: {time.monotonic() - start:.0f} s", flush=True)
    if args.run:
        _time_all(campaign, {n: failed.get(n, {}) for n in names if n not in campaign.rows}, args, start)
    print(campaign.save(), f"{time.monotonic() - start:.0f} s")


def _time_all(campaign: Campaign, left: dict[str, dict[str, str]], args: argparse.Namespace, start: float) -> None:
    bench = Bench(rounds=args.rounds, compiler=partial(for_one_shape, mode=args.mode))
    for name, failed in left.items():
        if time.monotonic() - start > args.seconds:
            print(f"{name:22} not begun: the time is over; run it again", flush=True)
            continue
        given = _operators()[name]
        operator = traced(name, given, FULL)
        if digest(operator) != campaign.made[name]["spec"]:
            raise SystemExit(f"the bundle of {name} is of another operator: make it again")
        begun = time.monotonic()
        make_ours = partial(our_call, args.bundles / "bundles" / name, operator)
        try:
            with torch.no_grad():
                timed = bench.one(given, operator, given.sizes(FULL), make_ours, failed)
        except QimengError as problem:
            timed = Timed(None, failed | {"ours": problem.message})
        campaign.left_out[name] = timed.left_out
        if timed.row is not None:
            campaign.rows[name] = timed.row
        print(f"{name:22} {_told(timed)}  {time.monotonic() - begun:.0f} s", flush=True)
        campaign.save()
        torch.cuda.empty_cache()


def _told(timed: Timed) -> str:
    left = "; ".join(f"{peer} left out: {reason}" for peer, reason in timed.left_out.items())
    if timed.row is None:
        return left
    row = timed.row
    times = "  ".join(f"{p} {ms:.3f}" for p, ms in {"ours": row.ours_ms, **row.peers_ms}.items())
    errors = f"error {row.error_before:.4f} {row.error_after:.4f}"
    return f"{times} ms  ratio {row.ratio:.3f}  {errors}  spread {row.spread:.1%}  {left[:160]}"
