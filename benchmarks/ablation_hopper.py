"""What each schedule choice of an H200 program is worth: switched off in the TL text, one at a time.

    python benchmarks/ablation_hopper.py build --out out/ablation                       # anywhere: judge, SASS
    python benchmarks/ablation_hopper.py time --bundles out/ablation --out benchmarks/results   # on an H200

`build` writes a bundle for shipped programs (D = 128, causal, 16 heads; two more for choices that it has not) and for
each line of their Schedules that may be left out; each is judged by interpretation, and its instructions are counted.
`time` runs all in turns at S = 2048 and 16384 and adds the times. A choice that others rest on takes them along.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import find_toolchain
from qimeng_attention.build.disassembly import count, parse
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import Outcome, run

# The shipped programs, and what is left out with a choice because it rests on it.
SPECS: dict[str, dict[str, Any]] = {
    "D = 128, causal": {"Hq": 16, "Hk": 16, "Dqk": 128, "mask": "causal"},
    "D = 256, causal": {"Hq": 8, "Hk": 8, "Dqk": 256, "mask": "causal"},
    "D = 64, causal": {"Hq": 32, "Hk": 32, "Dqk": 64, "mask": "causal"},
    "D = 128, softcap 30": {"Hq": 16, "Hk": 16, "Dqk": 128, "mask": "causal", "softcap": 30.0},
}
WITHOUT: dict[str, dict[str, tuple[str, ...]]] = {
    "D = 128, causal": {
        "shipped": (),
        "no sums per lane": ("sums",),
        "no overlap": ("overlap", "rescale"),
        "P V awaited behind the row sums": ("overlap",),
        "O scaled at the end of a tile": ("rescale",),
        "no unswitch": ("unswitch",),
        "no guard": ("guard", "unswitch"),
        "no second stage of Q": ("ahead",),
        "no staging": ("stage",),
        "rings of one stage": ("ring",),
        "not longest first": ("grid longest",),
        "not heads fastest": ("grid head",),
        "dealt in rounds": ("grid persistent",),
    },
    "D = 256, causal": {
        "shipped": (),
        "O scaled in every tile": ("threshold",),
        "P V awaited behind the row sums": ("overlap",),
        "no turns": ("pingpong",),
    },
    "D = 64, causal": {"shipped": (), "no turns": ("pingpong",), "sums added up first": ("sums",)},
    "D = 128, softcap 30": {"shipped": (), "exact tanh": ("approximate",)},
}
INSTEAD = {  # what is written for a line that is left out
    "dealt in rounds": "grid persistent",
    "P V awaited behind the row sums": "overlap GEMM P, V of the previous tile with the row statistics of this one",
    "sums added up first": "sums per lane",
}
# What each choice is for, and so what the SASS of the kernel without it must show.
PREDICTED = {
    "no sums per lane": "two more SHFL a row and tile: sums go across lanes in every tile",
    "no overlap": "one copy of the loop less (HGMMA), and no HGMMA under way while the exponentials are computed",
    "P V awaited behind the row sums": "more MUFU between the start of P V and the wait for it",
    "O scaled at the end of a tile": "no FMUL between the two products",
    "O scaled in every tile": "no VOTE: no warp asks whether any of its rows needs O scaled",
    "no unswitch": "one loop instead of two: fewer HGMMA and MUFU",
    "no guard": "one loop, its mask in every tile",
    "no second stage of Q": "fewer SYNCS, less shared memory; the same loop",
    "no staging": "no UTMASTG and STSM, more STG and SHFL; less shared memory",
    "rings of one stage": "less shared memory; the same loop, with fewer instructions for stages",
    "not longest first": "the same instructions: only the order of tiles",
    "not heads fastest": "the same instructions: only the order of tiles",
    "dealt in rounds": "no ATOMG, fewer SYNCS",
    "no turns": "no BAR in the loop",
    "sums added up first": "the same instructions in another order",
    "exact tanh": "MUFU.EX2 and MUFU.RCP instead of MUFU.TANH",
}
COUNTED = (
    "HGMMA",
    "UTMALDG",
    "UTMASTG",
    "MUFU.EX2",
    "MUFU.TANH",
    "MUFU.RCP",
    "SHFL",
    "STSM",
    "STG",
    "VOTE",
    "BAR",
    "SYNCS",
    "ISETP",
    "FSEL",
    "ATOMG",
)
LENGTHS = (2048, 16384)


def code_without(code: str, starts: tuple[str, ...], instead: str | None) -> str:
    """Leave out the lines of the Schedule that begin with these words."""
    head, block = code.split("\nSchedule\n")
    lines = [line for line in block.splitlines() if not line.strip().startswith(starts or ("\0",))]
    lines += [f"    {instead}"] if instead else []
    return f"{head}\nSchedule\n" + "\n".join(lines) + "\n"


def order(cubin: bytes, kernel: str) -> dict[str, int]:
    """Count what the first pipelined loop does between its products, and between the last one and the wait for it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(cubin)
        listing = subprocess.check_output([find_toolchain().nvdisasm, "-c", file.name], text=True)
    found = parse(listing, kernel)
    waits = [n for n, i in enumerate(found) if i.opcode.startswith("WARPGROUP.DEPBAR")]
    start = next((n for n in waits if found[n].operands.endswith("0x1")), None)
    if start is None:
        return {}
    end = next(n for n in waits if n > start)
    products = [n for n in range(start) if found[n].name == "HGMMA"]
    gap = max(range(len(products) - 15, len(products)), key=lambda n: products[n] - products[n - 1])
    between = count(found[products[gap - 1] : products[gap]])
    beside = count(found[start:end])
    return {"FMUL between the products": between["FMUL"], "MUFU beside P V": beside["MUFU.EX2"]}


def build(out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    rows: dict[str, dict[str, Any]] = {}
    for program, fields in SPECS.items():
        rows[program] = {}
        spec = AttentionSpec.make(**fields)
        code = plan(spec, targets.get("H200")).code
        for name, starts in WITHOUT[program].items():
            folder = folder_of(out, program, name)
            text = code_without(code, starts, INSTEAD.get(name))
            folder.with_suffix(".tl").write_text(text, "utf-8")
            outcome = run(spec, target="H200", out=folder, overwrite=True, code=text)
            rows[program][name] = row = {"left_out": list(starts), "instead": INSTEAD.get(name, ""), **seen(outcome)}
            shipped = rows[program]["shipped"]["counts"]
            row["predicted"] = PREDICTED.get(name, "")
            row["changed"] = {k: n for k, n in row["counts"].items() if n != shipped.get(k)}
            print(f"{program:20} {name:32} {row['verdict']:9} {row['shared_bytes']} {row['changed']}", flush=True)
    (out / "ablation.json").write_text(json.dumps(rows, indent=1) + "\n", "utf-8")


def folder_of(out: Path, program: str, name: str) -> Path:
    return out / f"{program} {name}".replace(" = ", "").replace(",", "").replace(" ", "_")


def seen(outcome: Outcome) -> dict[str, Any]:
    """Give the verdict, and what the kernel's resources and instructions are."""
    verdict, built = outcome.results.verdict, outcome.results.built
    assert verdict is not None
    assert built is not None
    assert outcome.folder is not None
    manifest = json.loads((outcome.folder / "manifest.json").read_text("utf-8"))
    ordered = order((outcome.folder / "kernel.cubin").read_bytes(), manifest["kernel"])
    return {
        "verdict": verdict.verdict,
        "checks": len(verdict.checks),
        "spills": built.report.spill_store_bytes,
        "shared_bytes": manifest["shared_bytes"],
        "counts": {c: built.report.count(c) for c in COUNTED} | ordered,
    }


def time(bundles: Path, out: Path, commit: str | None) -> None:
    import torch
    from ampere_forward import MOST_ERROR, TOKENS

    from qimeng_attention.bench.results import provenance
    from qimeng_attention.bench.timing import time_graphs
    from qimeng_attention.runtime import load

    rows = json.loads((bundles / "ablation.json").read_text("utf-8"))
    for program, found in rows.items():
        loaded = {name: load(folder_of(bundles, program, name)) for name in found}
        for length in LENGTHS:
            shape = (TOKENS // length, length, SPECS[program]["Hq"], SPECS[program]["Dqk"])
            inputs = [torch.randn(shape, device="cuda", dtype=torch.bfloat16) for _ in range(3)]
            results = {name: torch.empty_like(inputs[0]) for name in found}
            times = time_graphs({n: [partial(b, *inputs, out=results[n])] for n, b in loaded.items()})
            shipped = results["shipped"].float()
            for name, row in found.items():
                row[f"ms_{length}"] = times[name].median_ms
                row[f"cost_{length}"] = times[name].median_ms / times["shipped"].median_ms - 1
                difference = (results[name].float() - shipped).norm() / shipped.norm()
                assert difference < MOST_ERROR, f"{name} computes something else"
    results_file = provenance("ablation_hopper_h200", commit).model_copy(update={"summary": {"rows": rows}})
    for program, found in rows.items():
        print(program, {n: [round(r[f"cost_{length}"], 3) for length in LENGTHS] for n, r in found.items()})
    print(results_file.save(out))


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
