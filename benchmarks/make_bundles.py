"""Build the bundles that the GPU benchmarks take, on a machine without a GPU.

    python benchmarks/make_bundles.py --set speed --arch sm_90 --out out/speed
    python benchmarks/make_bundles.py --set judge --arch sm_90 --out out/judge
    python benchmarks/make_bundles.py --set judge_turing --arch sm_90 --out out/judge_turing  # T4 programs

    python benchmarks/make_bundles.py --set hopper --out out/hopper                # H200 programs
    python benchmarks/make_bundles.py --set variants --out out/variants            # H200 programs, masks and scores
    python benchmarks/make_bundles.py --set judge_hopper --out out/judge_hopper    # H200 programs
    python benchmarks/make_bundles.py --set judge_varlen --target H200 --out out/judge_varlen_hopper
    python benchmarks/make_bundles.py --set judge_varlen --arch sm_90 --out out/judge_varlen_ampere
    python benchmarks/make_bundles.py --set judge_varlen_turing --arch sm_90 --out out/judge_varlen_turing
    python benchmarks/make_bundles.py --set head_dims --arch sm_90 --out out/head_dims
    python benchmarks/make_bundles.py --set head_dims --target H200 --out out/head_dims_hopper

By default a bundle is an A100 program (its schedule keeps within 163 KB of shared memory), compiled for the
architecture named; without one it is compiled for its target's own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import run

HEADS = {"mha": (16, 16), "gqa": (32, 4), "mqa": (8, 1)}
MASKS = {
    "full": {"mask": "full"},
    "causal": {"mask": "causal"},
    "window": {"mask": "window:100"},
    "softcap": {"mask": "causal", "softcap": 5.0},
}


def speed_specs() -> dict[str, dict[str, object]]:
    """The rows of PERFORMANCE.md with D 64 and 128: 2048 / D heads."""
    made = {}
    for dim, mask in itertools.product((64, 128), ("full", "causal")):
        made[f"d{dim}_{mask}"] = {"Hq": 2048 // dim, "Dqk": dim, "mask": mask}
    return made


def judge_specs(dims: Sequence[int] = (64, 128)) -> dict[str, dict[str, object]]:
    """Head dims x full/causal/window/softcap x fp16/bf16 x MHA/GQA/MQA."""
    made = {}
    for dim, (mask, mods), dtype, (heads, (hq, hk)) in itertools.product(
        dims, MASKS.items(), ("bf16", "fp16"), HEADS.items()
    ):
        made[f"{heads}_{mask}_d{dim}_{dtype}"] = {"Hq": hq, "Hk": hk, "Dqk": dim, "dtype": dtype, **mods}
    return made


def judge_hopper_specs() -> dict[str, dict[str, object]]:
    """The judge's kernels with D 256 too."""
    return judge_specs((64, 128, 256))


def judge_turing_specs() -> dict[str, dict[str, object]]:
    """The judge's kernels with fp16, and D 192 and 256 too: T4 programs, which an H200 runs if built for sm_90."""
    return {n: fields for n, fields in judge_specs((64, 128, 192, 256)).items() if fields["dtype"] == "fp16"}


def hopper_specs() -> dict[str, dict[str, object]]:
    """The rows of PERFORMANCE.md with D 64, 128 and 256, and Qwen2.5-72B's heads."""
    made: dict[str, dict[str, object]] = {}
    for dim, mask in itertools.product((64, 128, 256), ("full", "causal")):
        made[f"d{dim}_{mask}"] = {"Hq": 2048 // dim, "Dqk": dim, "mask": mask}
    made["gqa_d128_causal"] = {"Hq": 64, "Hk": 8, "Dqk": 128, "mask": "causal"}
    return made


def variant_specs() -> dict[str, dict[str, object]]:
    """The masks and score modifiers of PERFORMANCE.md, on causal attention with 16 heads of 128."""
    causal = "kv_idx <= q_idx + Sk - Sq"
    variants: dict[str, dict[str, object]] = {
        "window1024": {"mask": "window:1024"},
        "softcap30": {"mask": "causal", "softcap": 30.0},
        "alibi": {"mask": "causal", "score": "score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)"},
        "prefixlm2048": {"mask": f"kv_idx < 2048 or {causal}"},
    }
    return {name: {"Hq": 16, "Hk": 16, "Dqk": 128, **fields} for name, fields in variants.items()}


def head_dim_specs() -> dict[str, dict[str, object]]:
    """Head dims that are no multiple of 64, and unequal ones: full, causal with GQA."""
    dims = [(d, d) for d in (32, 40, 72, 80, 96, 104, 136, 144, 192, 216, 256)] + [(192, 128), (64, 128), (96, 32)]
    made: dict[str, dict[str, object]] = {}
    for number, ((dqk, dv), (mask, hk)) in enumerate(itertools.product(dims, (("full", 8), ("causal", 2)))):
        dtype = ("bf16", "fp16")[number // 2 % 2]
        made[f"d{dqk}_{dv}_{mask}_{dtype}"] = {"Hq": 8, "Hk": hk, "Dqk": dqk, "Dv": dv, "mask": mask, "dtype": dtype}
    return made


def decode_specs() -> dict[str, dict[str, object]]:
    """The decode rows of PERFORMANCE.md: one query a sequence."""
    heads = ((64, 8), (32, 8), (32, 32))
    return {f"decode_{hq}_{hk}": {"Hq": hq, "Hk": hk, "Dqk": 128, "Sq": 1} for hq, hk in heads}


def judge_decode_specs() -> dict[str, dict[str, object]]:
    """The judge's masks with few queries: D 64/128/256, one query, or three where the mask tells them apart."""
    made = {}
    for name, fields in judge_specs((64, 128, 256)).items():
        made[name] = {**fields, "Sq": 3 if fields["mask"] == "causal" else 1}
    return made


def varlen_specs() -> dict[str, dict[str, object]]:
    """The rows `varlen` of serving.py: packed causal sequences."""
    heads = ((16, 16), (64, 8))
    return {f"varlen_{hq}_{hk}": {"Hq": hq, "Hk": hk, "Dqk": 128, "mask": "causal", "varlen": True} for hq, hk in heads}


def judge_varlen_specs() -> dict[str, dict[str, object]]:
    """Packed sequences: the judge's masks and heads, D 64, 128 and 192/128, a tensor of each head and sequence."""
    heads, dims = list(HEADS.items()), ((64, 64), (128, 128), (192, 128))
    made: dict[str, dict[str, object]] = {}
    for number, ((dqk, dv), (mask, mods)) in enumerate(itertools.product(dims, MASKS.items())):
        name, (hq, hk) = heads[number % len(heads)]
        fields = {"Hq": hq, "Hk": hk, "Dqk": dqk, "Dv": dv, "dtype": ("bf16", "fp16")[number % 2], "varlen": True}
        made[f"{name}_{mask}_d{dqk}_{dv}"] = {**fields, **mods}
    tensors = {"slopes": {"dims": ["Hq"], "dtype": "f32"}, "bias": {"dims": ["B"], "dtype": "f32"}}
    score = "score - slopes[h] * (q_idx + Sk - Sq - kv_idx) + bias[b]"
    made["mha_tensors_d128"] = {
        "Hq": 8,
        "Dqk": 128,
        "mask": "causal",
        "score": score,
        "tensors": tensors,
        "varlen": True,
    }
    return made


def judge_varlen_turing_specs() -> dict[str, dict[str, object]]:
    """The same in fp16: T4 programs."""
    return {name: {**fields, "dtype": "fp16"} for name, fields in judge_varlen_specs().items()}


SETS: dict[str, Callable[[], dict[str, dict[str, object]]]] = {
    "speed": speed_specs,
    "judge": judge_specs,
    "judge_hopper": judge_hopper_specs,
    "judge_turing": judge_turing_specs,
    "hopper": hopper_specs,
    "variants": variant_specs,
    "head_dims": head_dim_specs,
    "decode": decode_specs,
    "judge_decode": judge_decode_specs,
    "varlen": varlen_specs,
    "judge_varlen": judge_varlen_specs,
    "judge_varlen_turing": judge_varlen_turing_specs,
}
HOPPER = ("judge_hopper", "hopper", "variants", "decode", "judge_decode", "varlen")
TURING = ("judge_turing", "judge_varlen_turing")


def make(item: tuple[str, dict[str, object], str, str | None, str]) -> tuple[str, float, int]:
    name, fields, target, arch, out = item
    start = time.perf_counter()
    spec = AttentionSpec.make(name=name, **fields)
    outcome = run(spec, target=target, arch=arch, out=Path(out) / name, judge=False, overwrite=True)
    assert outcome.results.built is not None, outcome.notes
    return name, time.perf_counter() - start, outcome.results.built.report.spill_store_bytes or 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=tuple(SETS), required=True)
    parser.add_argument("--target", help=f"default: A100, H200 for {', '.join(HOPPER)}, T4 for {', '.join(TURING)}")
    parser.add_argument("--arch", help="default: the target's own")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    specs = SETS[args.set]()
    target = args.target or ("H200" if args.set in HOPPER else "T4" if args.set in TURING else "A100")
    args.out.mkdir(parents=True, exist_ok=True)
    items = [(name, fields, target, args.arch, str(args.out)) for name, fields in specs.items()]
    with ProcessPoolExecutor(args.jobs) as pool:
        seconds = []
        for name, took, spills in pool.map(make, items):
            seconds.append(took)
            print(f"{name:32} {took:5.1f} s  {spills} bytes of spills", flush=True)
    (args.out / "specs.json").write_text(json.dumps(specs, indent=1))
    print(f"{len(items)} bundles, 95th percentile {sorted(seconds)[int(0.95 * (len(seconds) - 1))]:.1f} s")


if __name__ == "__main__":
    main()
