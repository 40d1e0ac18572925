"""The matrix of targets, types, head dims, masks and heads: every cell generated, compiled, interpreted and judged.

    python benchmarks/matrix.py --compile --work out/matrix                  # anywhere, two processes; can be resumed
    python benchmarks/matrix.py --judge --work out/matrix --seconds 480      # on an H200; can be resumed
    python benchmarks/matrix.py --merge --work out/matrix --out benchmarks/results

A cell is a description for a target. Its program is written, checked, scheduled and translated; a program that several
cells share is compiled once, for its target's own architecture and, so that an H200 can judge it, for sm_90 (sm_90a
for the H200's own). Its TL is interpreted before the judge on the CPU. `--work` holds a JSON file for each step of each
cell or program: what is there is not done again, nor what an earlier matrix.json in `--out` tells of the same program.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import multiprocessing
import re
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from qimeng_attention import targets
from qimeng_attention.bench.results import Case, MatrixRow, Results
from qimeng_attention.build import build
from qimeng_attention.errors import QimengError
from qimeng_attention.judge import judge_program
from qimeng_attention.judge.inputs import CPU, Budget
from qimeng_attention.judge.process import Process
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import run

TARGETS = ("T4", "RTX8000", "A100", "L40S", "H200")
HEAD_DIMS = ((32, 32), (64, 64), (96, 96), (128, 128), (192, 128), (256, 256))
HEADS = {"mha": (8, 8), "gqa": (16, 2), "mqa": (8, 1)}
CAUSAL = "kv_idx <= q_idx + Sk - Sq"
MASKS: dict[str, dict[str, Any]] = {
    "full": {"mask": "full"},
    "causal": {"mask": "causal"},
    "window1024": {"mask": "window:1024"},
    "softcap30": {"mask": "causal", "softcap": 30.0},
    "alibi": {"mask": "causal", "score": "score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)"},
    "documents": {
        "mask": f"{CAUSAL} and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]",
        "tensors": {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}},
    },
}
ON_GPU = Budget("matrix", heads=None, keys=2200, scores=1 << 22, thorough=False)  # keys beyond a window of 1024
MARKS = re.compile(r"^\s*//.*$", re.MULTILINE)  # comments: the target's name and TL's lines among them


@dataclass(frozen=True)
class Cell:
    """One cell of the matrix."""

    target: str
    dtype: str
    dims: tuple[int, int]
    mask: str
    heads: str

    @property
    def name(self) -> str:
        """Name the cell."""
        return f"{self.target}_{self.dtype}_d{'_'.join(map(str, self.dims))}_{self.mask}_{self.heads}"

    @property
    def fields(self) -> dict[str, Any]:
        """Give the description, named alike for all targets, so that equal programs are seen to be equal."""
        hq, hk = HEADS[self.heads]
        sizes = {"Hq": hq, "Hk": hk, "Dqk": self.dims[0], "Dv": self.dims[1], "dtype": self.dtype}
        return {"name": f"{self.heads}_{self.mask}", **sizes, **MASKS[self.mask]}

    @property
    def arch(self) -> str:
        """Give the architecture that an H200 can run the program for."""
        return "sm_90a" if self.target == "H200" else "sm_90"

    def case(self) -> Case:
        """Write the cell as results do."""
        hq, hk = HEADS[self.heads]
        dqk, dv = self.dims
        return Case(B=0, Hq=hq, Hk=hk, Sq=0, Sk=0, Dqk=dqk, Dv=dv, dtype=self.dtype, mask=self.mask, target=self.target)


def cells() -> Iterator[Cell]:
    """Give every cell; a type that a target lacks is none."""
    for target, dtype, dims, mask, heads in itertools.product(TARGETS, ("fp16", "bf16"), HEAD_DIMS, MASKS, HEADS):
        if dtype in targets.get(target).dtypes:
            yield Cell(target, dtype, dims, mask, heads)


def write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(value), "utf-8")
    part.rename(path)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))  # type: ignore[no-any-return]


# ------------------------------------------------------------------ anywhere


def generate(item: tuple[Cell, Path]) -> None:
    """Write a cell's program, and say which program it is."""
    cell, work = item
    path = work / "cells" / f"{cell.name}.json"
    if path.is_file():
        return
    try:
        found = run(AttentionSpec.make(**cell.fields), target=cell.target, judge=False, until="cute").results
        source = MARKS.sub("", "\n".join(kernel.source for kernel in found.translations))
        key = hashlib.sha256(f"{found.target.arch}\n{cell.arch}\n{source}".encode()).hexdigest()[:20]
        write(path, {"program": key, "error": ""})
    except QimengError as error:
        write(path, {"program": "", "error": str(error)})


def make(item: tuple[Cell, str, Path]) -> str:
    """Compile and interpret a program through one of its cells; keep a bundle that an H200 can run."""
    cell, key, work = item
    spec = AttentionSpec.make(**cell.fields)
    found: dict[str, Any] = {"cell": cell.name, "fields": cell.fields, "verdict": "", "spills": -1, "error": ""}
    start = time.perf_counter()
    try:
        outcome = run(spec, target=cell.target, arch=cell.arch, out=work / "bundles" / key, judge=False, overwrite=True)
        own = [
            build(
                kernel.source,
                name=kernel.name,
                arch=outcome.results.target.arch,
                threads=kernel.threads,
                shared_bytes=kernel.shared_bytes,
                target=outcome.results.target,
            )
            for kernel in outcome.results.translations
        ]
        found["compile_s"] = sum(one.seconds for one in own)
        found["spills"] = sum(one.report.spill_store_bytes or 0 for one in own)
        verdict = judge_program(outcome.results.kernels, spec, seed=1, budget=CPU)
        found |= {"verdict": verdict.verdict, "error": "" if verdict.accepted else verdict.reason}
    except QimengError as error:
        found["error"] = str(error)
    write(work / "programs" / f"{key}.json", found | {"seconds": time.perf_counter() - start})
    return f"{cell.name:48} {found['verdict']:9} {found['spills']:4} bytes of spills  {found['error'][:80]}"


def earlier(out: Path) -> dict[str, MatrixRow]:
    """Give what a results file tells of programs that were compiled, interpreted and judged.

    Not of those that spilled: the build may do better by now, with a cubin that nobody has judged.
    """
    path = out / "matrix.json"
    rows = Results.load(path).rows if path.is_file() else []
    return {r.program: r for r in rows if isinstance(r, MatrixRow) and r.verdict_cpu and r.spills == 0}


def compile_all(work: Path, out: Path, jobs: int, seconds: float, only: str) -> None:
    every, start = [cell for cell in cells() if re.search(only, cell.name)], time.monotonic()
    with ProcessPoolExecutor(jobs) as pool:
        list(pool.map(generate, [(cell, work) for cell in every], chunksize=8))
        programs: dict[str, Cell] = {}
        for cell in every:
            programs.setdefault(str(read(work / "cells" / f"{cell.name}.json")["program"]), cell)
        programs.pop("", None)
        known = {key for key, r in earlier(out).items() if r.verdict_gpu}  # nothing is left to do for these
        left = {k: c for k, c in programs.items() if k not in known and not (work / "programs" / f"{k}.json").is_file()}
        print(f"{len(every)} cells, {len(programs)} programs, {len(left)} to make", flush=True)
        under_way = [pool.submit(make, (cell, key, work)) for key, cell in left.items()]
        for done in as_completed(under_way):
            if time.monotonic() - start > seconds:
                for waiting in under_way:
                    waiting.cancel()
            if not done.cancelled():
                print(done.result(), flush=True)


# ------------------------------------------------------------------ on an H200


@cache
def beside() -> Process:
    """Give this process the one in which its kernels run."""
    return Process()


def judge(item: tuple[str, dict[str, Any], Path, int]) -> str:
    from qimeng_attention.judge import judge_bundle

    key, fields, work, seed = item
    spec = AttentionSpec.make(**fields)
    try:
        verdict = judge_bundle(work / "bundles" / key, spec, seed=seed, budget=ON_GPU, process=beside())
        found = {"verdict": verdict.verdict, "reason": verdict.reason, "checks": len(verdict.checks), "seed": seed}
    except QimengError as error:
        found = {"verdict": "rejected", "reason": str(error), "checks": 0, "seed": seed}
    write(work / "judged" / f"{key}.json", found)
    return f"{key} {found['verdict']} {found['checks']} checks {str(found['reason'])[:100]}"


def judge_all(work: Path, out: Path, jobs: int, seconds: float) -> None:
    start, left = time.monotonic(), []
    known = {key for key, r in earlier(out).items() if r.verdict_gpu == "accepted"}
    for path in sorted((work / "programs").glob("*.json")):
        done = path.stem in known or (work / "judged" / path.name).is_file()
        if (work / "bundles" / path.stem).is_dir() and not done:
            left.append((path.stem, read(path)["fields"], work, int(time.time())))
    print(f"{len(left)} programs to judge", flush=True)
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        under_way = [pool.submit(judge, item) for item in left]
        for done in as_completed(under_way):
            if time.monotonic() - start > seconds:
                for waiting in under_way:
                    waiting.cancel()
            if not done.cancelled() and " accepted " not in (line := done.result()):
                print(line, flush=True)


# ------------------------------------------------------------------ both


def row(cell: Cell, work: Path, known: dict[str, MatrixRow]) -> MatrixRow:
    path = work / "cells" / f"{cell.name}.json"
    made = read(path) if path.is_file() else {"program": "", "error": "not generated"}
    key = made["program"]
    program, judged = (work / folder / f"{key}.json" for folder in ("programs", "judged"))
    found = read(program) if key and program.is_file() else {}
    gpu = read(judged) if key and judged.is_file() else {}
    if key in known and not gpu:
        before = known[key]
        gpu = {"verdict": before.verdict_gpu, "reason": before.error, "checks": before.checks}
        found = found or before.model_dump() | {"verdict": before.verdict_cpu}
    return MatrixRow(
        case=cell.case(),
        verdict_cpu=found.get("verdict", ""),
        verdict_gpu=gpu.get("verdict", ""),
        spills=found.get("spills", -1),
        compile_s=round(found.get("compile_s", 0.0), 2),
        error=made["error"] or found.get("error", "") or ("" if gpu.get("verdict") != "rejected" else gpu["reason"]),
        program=key,
        checks=gpu.get("checks", 0),
    )


def merge(work: Path, out: Path, commit: str, device: str, note: str) -> None:
    known = earlier(out)
    rows = [row(cell, work, known) for cell in cells()]
    seconds = sorted({r.program: r.compile_s for r in rows if r.compile_s}.values())
    summary: dict[str, Any] = {
        "cells": len(rows),
        "accepted on the CPU": sum(r.verdict_cpu == "accepted" for r in rows),
        "accepted on the GPU": sum(r.verdict_gpu == "accepted" for r in rows),
        "programs": len({r.program for r in rows if r.program}),
        "with spills": sum(r.spills > 0 for r in rows),
        "with spills up to D = 128": sum(r.spills > 0 and max(r.case.Dqk, r.case.Dv) <= 128 for r in rows),
        "compile_s, 95th percentile": seconds[int(0.95 * (len(seconds) - 1))] if seconds else 0.0,
        "checks on the GPU": sum({r.program: r.checks for r in rows}.values()),
    }
    summary |= {"note": note} if note else {}
    results = Results(
        name="matrix", commit=commit, date=time.strftime("%Y-%m-%d"), device=device, driver="", packages={},
        command="python benchmarks/matrix.py --merge", rows=rows, summary=summary,
    )  # fmt: skip
    print(json.dumps(summary), results.save(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step = parser.add_mutually_exclusive_group(required=True)
    step.add_argument("--compile", action="store_true")
    step.add_argument("--judge", action="store_true")
    step.add_argument("--merge", action="store_true")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin nothing more after this time")
    parser.add_argument("--only", default="", help="compile the cells whose names match this expression")
    parser.add_argument("--commit", default="", help="of the tree that was judged")
    parser.add_argument("--device", default="NVIDIA H200", help="that judged")
    parser.add_argument("--note", default="", help="what a reader of the results should know")
    args = parser.parse_args()
    if args.compile:
        compile_all(args.work, args.out, args.jobs, args.seconds, args.only)
    elif args.judge:
        judge_all(args.work, args.out, args.jobs, args.seconds)
    else:
        merge(args.work, args.out, args.commit, args.device, args.note)


if __name__ == "__main__":
    main()
