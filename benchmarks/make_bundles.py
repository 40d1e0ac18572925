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
    python benchmarks/make_bundles.py --set weights --out out/weights_hopper       # sinks, sigmoid, ReLU and others
    python benchmarks/make_bundles.py --set weights --target A100 --arch sm_90 --out out/weights_ampere
    python benchmarks/make_bundles.py --set weights_turing --arch sm_90 --out out/weights_turing
    python benchmarks/make_bundles.py --set paged --out out/paged                  # H200 programs, caches
    python benchmarks/make_bundles.py --set judge_serving --arch sm_90 --out out/judge_serving  # or --target T4, H200

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
        "documents1500": {
            "mask": f"{causal} and doc[b, q_idx + Sk - Sq] == doc[b, kv_idx]",
            "tensors": {"doc": {"dims": ["B", "Sk"], "dtype": "i32"}},
        },
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


def weights_specs() -> dict[str, dict[str, object]]:
    """Every word of `weights`, for many queries and for one, and GPT-OSS's layers."""
    many: dict[str, object] = {"Hq": 8, "Hk": 2, "mask": "causal"}
    made: dict[str, dict[str, object]] = {
        "gpt_oss_window": {"Hq": 64, "Hk": 8, "Dqk": 64, "mask": "window:127", "weights": "softmax+sink"},
        "gpt_oss_causal": {"Hq": 64, "Hk": 8, "Dqk": 64, "mask": "causal", "weights": "softmax+sink"},
        "gpt_oss_decode": {"Hq": 64, "Hk": 8, "Dqk": 64, "Sq": 1, "weights": "softmax+sink"},
        "gpt_oss_decode_window": {
            "Hq": 64, "Hk": 8, "Dqk": 64, "Sq": 1, "mask": "window:127", "weights": "softmax+sink",
        },
        "sink_capped": {**many, "Dqk": 128, "softcap": 20.0, "weights": "softmax+sink", "dtype": "fp16"},
        "sink_of_any_scale": {**many, "Dqk": 128, "scale_sign": "any", "weights": "softmax+sink"},
        "sigmoid_biased": {**many, "Dqk": 128, "weights": "sigmoid", "score": "score - ln(Sk)"},
        "relu2_divided": {**many, "Dqk": 128, "weights": "relu2", "score": "score / Sk", "dtype": "fp16"},
        "retention": {
            **many, "Dqk": 64, "weights": "linear",
            "score": "score * exp2((q_idx + Sk - Sq - kv_idx) * log2(1 - exp2(-5 - h)))",
        },
    }  # fmt: skip
    words = ("softmax+sink", "softmax1", "sigmoid", "relu", "relu2", "linear")
    for number, (word, dim, queries) in enumerate(itertools.product(words, (64, 128), (None, 1))):
        dtype = ("bf16", "fp16")[(number // 2 + number // 4) % 2]
        name = f"{word.replace('+', '_')}_d{dim}{'_decode' if queries else ''}_{dtype}"
        made[name] = {**many, "Dqk": dim, "weights": word, "dtype": dtype, **({"Sq": queries} if queries else {})}
    return made


def weights_turing_specs() -> dict[str, dict[str, object]]:
    """The same in fp16: T4 programs, which an H200 runs if built for sm_90."""
    return {n.replace("bf16", "fp16"): {**fields, "dtype": "fp16"} for n, fields in weights_specs().items()}


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


PAGE_SIZES = (1, 16, 64, 128, 256)


def paged_specs() -> dict[str, dict[str, object]]:
    """The rows of serving_paged.py: one query a sequence over pages, and over a dense cache with lengths."""
    one = {"Hq": 64, "Hk": 8, "Dqk": 128, "Sq": 1, "mask": "causal"}
    pages: dict[str, dict[str, object]] = {f"paged_{size}": {**one, "page_size": size} for size in PAGE_SIZES}
    return {**pages, "seqused": {**one, "seqused_k": True}}


def judge_serving_specs() -> dict[str, dict[str, object]]:
    """Each page size, and lengths alone, with one or four queries: head dims, heads and masks take turns."""
    dims, heads = ((64, 64), (128, 128), (192, 128)), ((16, 2), (8, 8), (16, 1))
    masks = ({"mask": "causal"}, {"mask": "full"}, {"mask": "window:100"}, {"mask": "causal", "softcap": 5.0})
    made: dict[str, dict[str, object]] = {}
    for number, (size, queries) in enumerate(itertools.product((*PAGE_SIZES, 0), (1, 4))):
        (dqk, dv), (hq, hk) = dims[number % 3], heads[(number // 2 + queries) % 3]
        cache = {"page_size": size} if size else {"seqused_k": True}
        mods = masks[number // 2 % 4] if queries > 1 else masks[1 - number // 2 % 2]
        fields = {"Hq": hq, "Hk": hk, "Dqk": dqk, "Dv": dv, "Sq": queries, "dtype": "fp16", **mods}
        made[f"{f'paged{size}' if size else 'seqused'}_{queries}"] = {**fields, **cache}
    return made


def transformers_specs() -> dict[str, dict[str, object]]:
    """What the models of tests/gpu/test_transformers_gpu.py ask for."""
    made: dict[str, dict[str, object]] = {}
    for dim, mask in itertools.product((64, 128), ("causal", "full")):
        made[f"llama_{mask}_d{dim}"] = {"Hq": 8, "Hk": 2, "Dqk": dim, "mask": mask}
    return made


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
    "weights": weights_specs,
    "weights_turing": weights_turing_specs,
    "varlen": varlen_specs,
    "judge_varlen": judge_varlen_specs,
    "judge_varlen_turing": judge_varlen_turing_specs,
    "paged": paged_specs,
    "judge_serving": judge_serving_specs,
    "transformers": transformers_specs,
}
HOPPER = ("judge_hopper", "hopper", "variants", "decode", "judge_decode", "weights", "varlen", "paged", "transformers")
TURING = ("judge_turing", "weights_turing", "judge_varlen_turing")


def make(item: tuple[str, dict[str, object], str, str | None, str]) -> tuple[str, float, int]:
    name, fields, target, arch, out = item
    start = time.perf_counter()
    spec = AttentionSpec.make(name=name, **fields)
    outcome = run(spec, target=target, arch=arch, out=Path(out) / name, judge=False, overwrite=True)
    assert outcome.results.builds, outcome.notes
    spills = sum(built.report.spill_store_bytes or 0 for built in outcome.results.builds)
    return name, time.perf_counter() - start, spills


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
