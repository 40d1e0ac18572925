"""What each schedule choice of an H200 program is worth: switched off in the TL text, one at a time.

    python benchmarks/ablation_hopper.py build --out out/ablation                       # anywhere: judge, SASS
    python benchmarks/ablation_hopper.py time --bundles out/ablation --out benchmarks/results   # on an H200

`build` writes a bundle for the shipped program (D = 128, causal, 16 heads) and for each line of its Schedule that may
be left out; each is judged by interpretation, and its instructions are counted. `time` runs all in turns at S = 2048
and 16384 and adds the times. A choice that others rest on takes them along, as the table says.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import run

SPEC = {"Hq": 16, "Hk": 16, "Dqk": 128, "mask": "causal"}
# What is left out with a choice because it rests on it, or written instead.
WITHOUT: dict[str, tuple[str, ...]] = {
    "shipped": (),
    "no sums per lane": ("sums",),
    "no overlap": ("overlap",),
    "no unswitch": ("unswitch",),
    "no guard": ("guard", "unswitch"),
    "no second stage of Q": ("ahead",),
    "no staging": ("stage",),
    "rings of one stage": ("ring",),
    "not longest first": ("grid longest",),
    "dealt in rounds": ("grid persistent",),
}
INSTEAD = {"dealt in rounds": "grid persistent"}
COUNTED = ("HGMMA", "UTMALDG", "UTMASTG", "MUFU.EX2", "SHFL", "STSM", "STG", "BAR", "SYNCS", "ISETP", "FSEL", "ATOMG")
LENGTHS = (2048, 16384)


def code_without(code: str, starts: tuple[str, ...], instead: str | None) -> str:
    """Leave out the lines of the Schedule that begin with these words."""
    head, block = code.split("\nSchedule\n")
    lines = [line for line in block.splitlines() if not line.strip().startswith(starts or ("\0",))]
    lines += [f"    {instead}"] if instead else []
    return f"{head}\nSchedule\n" + "\n".join(lines) + "\n"


def build(out: Path) -> None:
    code = plan(AttentionSpec.make(**SPEC), targets.get("H200")).code
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, Any] = {}
    for name, starts in WITHOUT.items():
        folder = out / name.replace(" ", "_")
        text = code_without(code, starts, INSTEAD.get(name))
        program = out / f"{folder.name}.tl"
        program.write_text(text, "utf-8")
        spec = AttentionSpec.make(**SPEC)
        outcome = run(spec, target="H200", out=folder, overwrite=True, code=text)
        verdict, built = outcome.results.verdict, outcome.results.built
        assert verdict is not None
        assert built is not None
        rows[name] = {
            "left_out": list(starts),
            "verdict": verdict.verdict,
            "checks": len(verdict.checks),
            "spills": built.report.spill_store_bytes,
            "counts": {c: built.report.count(c) for c in COUNTED},
        }
        print(f"{name:24} {verdict.verdict:10} {rows[name]['counts']}", flush=True)
    (out / "ablation.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def time(bundles: Path, out: Path, commit: str | None) -> None:
    import torch
    from ampere_forward import MOST_ERROR, TOKENS

    from qimeng_attention.bench.results import provenance
    from qimeng_attention.bench.timing import time_graphs
    from qimeng_attention.runtime import load

    rows = json.loads((bundles / "ablation.json").read_text("utf-8"))
    loaded = {name: load(bundles / name.replace(" ", "_")) for name in rows}
    for length in LENGTHS:
        shape = (TOKENS // length, length, SPEC["Hq"], SPEC["Dqk"])
        inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
        results = {name: torch.empty_like(inputs[0]) for name in rows}
        calls = {n: [partial(b, *inputs, out=results[n])] for n, b in loaded.items()}
        times = time_graphs(calls)
        for name, row in rows.items():
            row[f"ms_{length}"] = times[name].median_ms
            row[f"cost_{length}"] = times[name].median_ms / times["shipped"].median_ms - 1
            difference = (results[name].float() - results["shipped"].float()).norm() / results["shipped"].float().norm()
            assert difference < MOST_ERROR, f"{name} computes something else"
    found = provenance("ablation_hopper_h200", commit).model_copy(update={"summary": {"rows": rows}})
    print(json.dumps({n: [round(r[f"cost_{s}"], 3) for s in LENGTHS] for n, r in rows.items()}), found.save(out))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=("build", "time"))
    parser.add_argument("--bundles", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--commit")
    args = parser.parse_args()
    if args.step == "build":
        build(args.out)
    else:
        time(args.bundles, args.out, args.commit)


if __name__ == "__main__":
    main()
