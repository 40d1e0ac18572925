"""FlexAttention's callables traced to descriptions, made into H200 programs, judged, and timed beside FlexAttention.

    python benchmarks/flex_mods.py                                                  # needs PyTorch, no GPU
    python benchmarks/flex_mods.py --make --out out/flex                            # the same; can be resumed
    python benchmarks/flex_mods.py --judge --bundles out/flex --out benchmarks/results   # on an H200; can be resumed
    python benchmarks/flex_mods.py --run --bundles out/flex --out benchmarks/results     # on an H200; can be resumed

Without a flag, each callable is evaluated by PyTorch on a dense grid of scores, and so is the expression that the trace
gives, in float64. `--make` writes a bundle and a JSON file for each operator: what it became, the CPU judge's verdict,
or the error that refused it. `--judge` and `--run` add the GPU judge's verdicts and the times to flex_mods_h200.json,
after each operator; what is there for the same bundle and device is not done again.

Not here: the operators (flex_catalogue.py), judging and timing on a GPU (flex_speed.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import re
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from flex_catalogue import FULL, SMALL, Mods, Sizes, accepted, refused

import qimeng_attention
from qimeng_attention.errors import QimengError, SpecError
from qimeng_attention.integrations.flex import FlexOperator, spec_from_flex
from qimeng_attention.judge.meaning import Call, Operator
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.workflow import run

TOLERANCE = 1e-5  # callables compute in float32 where their tensors do
DIM = 128


def traced(name: str, given: Mods, sizes: Sizes) -> FlexOperator:
    """Trace one of them."""
    return spec_from_flex(given.score_mod, given.mask_mod, Hq=sizes.H, Dqk=DIM, dims=given.dims, name=name)


# ------------------------------------------------------------------ the expression against the callable


def difference(given: Mods, operator: FlexOperator, sizes: Sizes = SMALL) -> float:
    """Give the largest difference between a callable's scores and the traced expression's, hidden ones as -inf."""
    n = given.sizes(sizes)
    scores = 3 * torch.randn((n.B, n.H, n.Sq, n.Sk), generator=torch.Generator().manual_seed(1))
    eager, found = _eager(given, scores), _expression(operator, scores)
    with np.errstate(invalid="ignore"):
        error = np.where(eager == found, 0, np.abs(eager - found))
    return math.inf if np.isnan(error).any() else float(error.max())


def _eager(given: Mods, scores: torch.Tensor) -> np.ndarray[Any, Any]:
    """Evaluate the callables themselves at every place, as FlexAttention does: mapped over one index after another."""
    places = [torch.arange(n, dtype=torch.int32) for n in scores.shape]
    found = scores
    if given.score_mod is not None:
        found = _mapped(given.score_mod, 1)(found, *places)
    if given.mask_mod is not None:
        found = torch.where(_mapped(given.mask_mod, 0)(*places), found, -math.inf)
    return found.double().expand(scores.shape).numpy()


def _mapped(f: Callable[..., Any], scores: int) -> Callable[..., Any]:
    for place in reversed(range(4)):
        mapped = [0 if n == place else None for n in range(4)]
        f = torch.vmap(f, in_dims=(*[0] * scores, *mapped))
    return f


def _expression(operator: FlexOperator, scores: torch.Tensor) -> np.ndarray[Any, Any]:
    """Evaluate the traced expressions, head by head."""
    contents = {kernel_name(n): _values(t) for n, t in operator.tensors.items()}
    meaning = Operator.of(operator.spec).bind(contents)
    batch, heads, queries, keys = scores.shape
    call = Call(batch, queries, keys, heads, heads, DIM, DIM, 1.0)
    rows, columns, given = np.arange(queries), np.arange(keys), scores.double().numpy()
    found = np.empty(given.shape)
    for b in range(batch):
        for h in range(heads):
            modified = meaning.modified(call, b, h, rows, columns, given[b, h])
            found[b, h] = np.where(meaning.visible(call, b, h, rows, columns), modified, -np.inf)
    return found


def _values(t: torch.Tensor) -> np.ndarray[Any, Any]:
    return (t.float() if t.is_floating_point() else t).numpy()


def compare() -> int:
    """Print what each operator became and how far it is off; give the number of those that are too far."""
    wrong = 0
    for name, given in accepted(SMALL).items():
        operator = traced(name, given, SMALL)
        off = difference(given, operator)
        wrong += not off <= TOLERANCE
        print(f"{name}: off by {off:.1e}\n  mask {operator.spec.mask}\n  score {operator.spec.score}")
    for name, given in refused(SMALL).items():
        print(f"{name}: {refusal(name, given) or 'accepted, which was not expected'}")
    print(f"{wrong} operators are off by more than {TOLERANCE:.1e}")
    return wrong


def refusal(name: str, given: Mods, sizes: Sizes = SMALL) -> str:
    """Give the reason for which an operator is refused; nothing where it is not."""
    try:
        traced(name, given, sizes)
    except SpecError as error:
        return error.message
    return ""


# ------------------------------------------------------------------ bundles


def digest(operator: FlexOperator) -> str:
    """Name what an operator became."""
    fields = operator.spec.model_dump(mode="json")
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:20]


@cache
def package_digest() -> str:
    """Name the sources that make bundles: a bundle of others is made again."""
    root, total = Path(qimeng_attention.__file__).parent, hashlib.sha256()
    for path in sorted(p for p in root.rglob("*") if p.suffix in (".py", ".tl", ".cuh", ".toml", ".lark")):
        total.update(path.read_bytes())
    return total.hexdigest()[:20]


def make(name: str, given: Mods, out: Path) -> dict[str, Any]:
    """Make and judge a bundle of one operator, unless that was done; say what came of it."""
    path = out / "mods" / f"{name}.json"
    before = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    found: dict[str, Any] = {"name": name, "accepted": False, "verdict": "", "reason": "", "error": ""}
    start = time.perf_counter()
    try:
        operator = traced(name, given, FULL)
        spec = operator.spec
        same = {"spec": digest(operator), "made_by": package_digest()}
        if same.items() <= before.items() and not before["error"]:
            return before
        found |= {"accepted": True, "mask": spec.mask, "score": spec.score, **same}
        found["tensors"] = {n: t.describe() for n, t in spec.tensors.items()}
        outcome = run(spec, target="H200", out=out / "bundles" / name, overwrite=True)
        if outcome.results.verdict is not None:
            found |= {"verdict": outcome.results.verdict.verdict, "reason": outcome.results.verdict.reason}
        if outcome.folder is None:
            found["error"] = "; ".join(outcome.notes)
        if outcome.results.built is not None:
            report = outcome.results.built.report
            found |= {"registers": report.registers, "spills": report.spill_store_bytes or 0}
    except QimengError as error:
        found["error"] = error.message
    found["seconds"] = round(time.perf_counter() - start, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1), "utf-8")
    return found


def make_all(out: Path, only: str) -> None:
    """Make every bundle, and note why the others are refused."""
    for name, given in {**accepted(FULL), **refused(SMALL)}.items():
        if re.search(only, name):
            found = make(name, given, out)
            said = found["verdict"] if found["accepted"] else "refused"
            print(f"{name:22} {said:12} {found['seconds']:5.1f} s  {found['error'] or found['reason']}", flush=True)


# ------------------------------------------------------------------ the command


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    step = parser.add_mutually_exclusive_group()
    step.add_argument("--make", action="store_true", help="write bundles to --out")
    step.add_argument("--judge", action="store_true", help="judge the bundles on a GPU")
    step.add_argument("--run", action="store_true", help="judge what was not judged, and time beside FlexAttention")
    parser.add_argument("--bundles", type=Path, default=Path("out/flex"), help="the folder that --make wrote")
    parser.add_argument("--out", type=Path, default=Path("out/flex"))
    parser.add_argument("--only", default="", help="operators whose names match this expression")
    parser.add_argument("--seconds", type=float, default=500, help="begin nothing more after this time")
    parser.add_argument("--jobs", type=int, default=8, help="processes that judge and compile ahead")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--mode", help="of torch.compile, for FlexAttention: max-autotune-no-cudagraphs takes minutes")
    parser.add_argument("--commit", help="of the tree that runs, where git cannot tell")
    args = parser.parse_args()
    if args.make:
        make_all(args.out, args.only)
    elif args.judge or args.run:
        import flex_speed

        flex_speed.measure_all(args)
    else:
        raise SystemExit(compare() > 0)


if __name__ == "__main__":
    main()
