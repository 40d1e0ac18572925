"""Times a bundle against PyTorch's attention in one process, for `qimeng bench`, and keeps the times in the bundle.

The peer is `scaled_dot_product_attention`: as it is for full and causal attention, with the mask as a tensor where
scores are not modified, none otherwise. Speeds count the pairs of query and key that the mask shows.

Not here: how calls are timed (timing.py), how a bundle is written (store/).
"""

from __future__ import annotations

import datetime
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_attention.bench.timing import time_eager, time_graphs
from qimeng_attention.errors import EnvironmentMissing, LaunchError, SpecError
from qimeng_attention.judge import Call, Operator
from qimeng_attention.judge.contents import draw
from qimeng_attention.judge.meaning import own_sizes_of
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.runtime import Bundle, load
from qimeng_attention.runtime.launcher import runs_on
from qimeng_attention.runtime.plan import TORCH_TYPES
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.store import write_bundle
from qimeng_attention.tl.numerics import Array

SPEED = "speed.json"
PLACES = 16  # batch entries and heads at which pairs are counted, where the mask differs between them
SETS = 4  # of inputs, taken in turn: a call does not find its own in the L2 cache
MOST_MASK = 1 << 28  # elements of a mask that is handed to the peer
Progress = Callable[[int, int, str], None]


def bench_bundle(
    path: Path, batch: int, length: int, *, keep: bool = True, progress: Progress | None = None
) -> dict[str, Any]:
    """Time one shape: graph replays, interleaved with the peer, and a call from Python beside it.

    Args:
        path: a bundle.
        batch: B, where the description fixes none.
        length: Sq and Sk, where the description fixes none.
        keep: write the times into the bundle, beside those of other shapes.
        progress: called before each step.

    Raises:
        EnvironmentMissing: no PyTorch, no GPU, or a folder that cannot be written.
        LaunchError: the kernel is for another GPU.
        SpecError: the bundle has no description.
    """
    torch = _torch()
    bundle, steps = load(path), progress or (lambda done, total, name: None)
    fields = json.loads(bundle.files["spec.json"])
    if not fields:
        raise SpecError(
            f"{path} was made from TL without a description: there is nothing to time it on",
            hint="generate it with --spec FILE",
            field="bundle",
            value=str(path),
        )
    refuse_untimed(fields)
    if not runs_on(bundle.manifest.built_arch, torch.cuda.get_device_capability()):
        raise LaunchError(
            f"the kernel is built for {bundle.manifest.built_arch}, which this GPU is not",
            hint="generate it for this GPU: --target auto",
        )
    steps(0, 3, "inputs")
    job = _job(torch, bundle, AttentionSpec.make(**fields), batch, length)
    steps(1, 3, f"replays of {' and '.join(job.calls)}")
    times = time_graphs(job.calls)
    steps(2, 3, "calls from Python")
    row = _row(job, times, {name: time_eager(calls[0]) for name, calls in job.calls.items()})
    measured = _measured(bundle, _machine(torch), row)
    if keep:
        save(bundle, measured)
    steps(3, 3, "")
    return measured


def refuse_untimed(fields: Mapping[str, Any]) -> None:
    """Refuse a description of calls that have no one length.

    Raises:
        SpecError: packed sequences, or caches with lengths of their own.
    """
    for field in ("varlen", "seqused_k"):
        if fields.get(field):
            raise SpecError(
                "each call says itself how long its sequences are: there is no one length to time it at",
                hint="time calls on lengths of your own, as benchmarks/serving.py does",
                field=field,
                value=True,
            )


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing("PyTorch is not installed", hint="pip install 'qimeng-attention[gpu]'") from None
    if not torch.cuda.is_available():
        raise EnvironmentMissing(
            "timing needs an NVIDIA GPU, and PyTorch finds none",
            hint="run this on a machine with one; `qimeng show` tells what is predicted",
        )
    return torch


@dataclass(frozen=True)
class _Job:
    """What is timed: calls by name, and what a call computes and moves."""

    call: Call
    calls: dict[str, list[Callable[[], Any]]]
    peer: str  # in words, what it computes; "" where there is none
    flops: float
    bytes: int


def _job(torch: Any, bundle: Bundle, spec: AttentionSpec, batch: int, length: int) -> _Job:
    sizes = (spec.B or batch, spec.Sq or length, spec.Sk or length)
    call = Call(*sizes, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, spec.default_scale, own_sizes_of(spec, length))
    contents = draw(np.random.default_rng(0), spec.tensors, call.sizes, "documents")
    operator = Operator.of(spec).bind(contents)
    tensors = [_qkv(torch, spec, call) for _ in range(SETS)]
    named = {n: _on_gpu(torch, contents[kernel_name(n)], t.dtype) for n, t in spec.tensors.items()}
    calls = {"ours": [_called(bundle, q, k, v, tensors=named) for q, k, v in tensors]}
    peer, words = _peer(torch, spec, operator, call)
    if peer is not None:
        calls["sdpa"] = [_called(peer, *x) for x in tensors]
    seen = pairs_seen(operator, call)
    moved = 2 * (call.B * call.Sq * call.Hq * (call.Dqk + call.Dv) + call.B * call.Sk * call.Hk * (call.Dqk + call.Dv))
    flops = 2.0 * call.B * call.Hq * (call.Dqk + call.Dv) * call.Sq * call.Sk * seen
    return _Job(call, calls, words, flops, moved)


def _called(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[[], Any]:
    return lambda: function(*args, **kwargs)


def _qkv(torch: Any, spec: AttentionSpec, call: Call) -> tuple[Any, Any, Any]:
    dtype = getattr(torch, TORCH_TYPES[spec.dtype])
    q, k, v = (torch.randn(call.shapes()[n], device="cuda", dtype=dtype) for n in ("Q", "K", "V"))
    return q, k, v


def _on_gpu(torch: Any, values: Array, dtype: str) -> Any:
    return torch.from_numpy(np.array(values)).to("cuda", getattr(torch, TORCH_TYPES[dtype]))


def _peer(torch: Any, spec: AttentionSpec, operator: Operator, call: Call) -> tuple[Callable[..., Any] | None, str]:
    """Give PyTorch's attention for this operator, and what it is called with; None where it has none."""
    if operator.score is not None or operator.reads_position or spec.weights != "softmax":
        return None, ""
    mask, words, causal = None, "SDPA", spec.mask.strip() == "causal" and call.Sq == call.Sk
    if operator.condition is not None and not causal:
        if call.Sq * call.Sk > MOST_MASK:
            return None, ""
        seen = operator.visible(call, 0, 0, np.arange(call.Sq), np.arange(call.Sk))
        mask, words = _on_gpu(torch, seen, "bool"), "SDPA with the mask as a tensor"

    def sdpa(q: Any, k: Any, v: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q, k, v)),
            attn_mask=mask,
            is_causal=causal,
            scale=call.scale,
            enable_gqa=call.Hq != call.Hk,
        )

    return sdpa, words


def pairs_seen(operator: Operator, call: Call) -> float:
    """Give the share of pairs that the mask shows; where it differs between heads, from a few of them."""
    if operator.condition is None or not call.Sq * call.Sk:
        return 1.0
    places = [(b, h) for b in range(call.B) for h in range(call.Hq)] if operator.reads_position else [(0, 0)]
    chosen = random.Random(0).sample(places, min(PLACES, len(places)))
    keys, shown = np.arange(call.Sk), 0
    for b, h in chosen:
        for start in range(0, call.Sq, 512):
            rows = np.arange(start, min(start + 512, call.Sq))
            shown += int(np.count_nonzero(operator.visible(call, b, h, rows, keys)))
    return shown / (len(chosen) * call.Sq * call.Sk)


# ------------------------------------------------------------------ what was measured
def _row(job: _Job, times: Mapping[str, Any], eager: Mapping[str, float]) -> dict[str, Any]:
    call, ours = job.call, times["ours"]
    found: dict[str, Any] = {
        "B": call.B,
        "Sq": call.Sq,
        "Sk": call.Sk,
        "ours_ms": _rounded(ours.median_ms),
        "ours_tflops": round(job.flops / ours.median_ms / 1e9, 1),
        "ours_gb_per_s": round(job.bytes / ours.median_ms / 1e6, 1),
        "ours_eager_ms": _rounded(eager["ours"]),
        "spread": round(ours.spread, 3),
    }
    if "sdpa" in times:
        peer = times["sdpa"].median_ms
        found |= {
            "peer": job.peer,
            "peer_ms": _rounded(peer),
            "peer_eager_ms": _rounded(eager["sdpa"]),
            "ratio": round(peer / ours.median_ms, 3),
        }
    return found


def _rounded(ms: float) -> float:
    return float(f"{ms:.4g}")


def _machine(torch: Any) -> dict[str, str]:
    return {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }


def _measured(bundle: Bundle, machine: Mapping[str, str], row: Mapping[str, Any]) -> dict[str, Any]:
    """Give the new times beside those of other shapes on the same machine."""
    before = json.loads(bundle.files.get(SPEED, b"{}"))
    same = isinstance(before, dict) and before.get("measured_on") == dict(machine)
    shape = [row[name] for name in ("B", "Sq", "Sk")]
    kept = before["rows"] if same and isinstance(before.get("rows"), list) else []
    rows = [r for r in kept if [r.get(name) for name in ("B", "Sq", "Sk")] != shape]
    return {"measured_on": dict(machine), "rows": [*rows, dict(row)]}


def save(bundle: Bundle, measured: Mapping[str, Any]) -> Path:
    """Write the bundle anew, with these times.

    Raises:
        EnvironmentMissing: its folder cannot be written.
    """
    files = {**bundle.files, SPEED: (json.dumps(measured, indent=1) + "\n").encode()}
    path = bundle.path
    return write_bundle(path.parent, files, bundle.manifest, name=path.name, overwrite=True)
