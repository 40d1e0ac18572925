"""Times a bundle against PyTorch's attention in one process, for `qimeng bench`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from qimeng_attention.bench.timing import time_eager, time_graphs
from qimeng_attention.errors import EnvironmentMissing, SpecError
from qimeng_attention.runtime import load


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing("PyTorch is not installed", hint="pip install 'qimeng-attention[gpu]'") from None
    if not torch.cuda.is_available():
        raise EnvironmentMissing("no NVIDIA GPU was found", hint="run this on a machine with one")
    return torch


def bench_bundle(path: Path, batch: int, length: int) -> dict[str, Any]:
    """Time one shape: graph replays, interleaved with SDPA's best backend, and a call from Python beside it.

    Args:
        path: a bundle.
        batch: B.
        length: Sq and Sk.

    Raises:
        EnvironmentMissing: no PyTorch or no GPU.
        SpecError: SDPA cannot do this operator, or the bundle has no spec.
    """
    torch = _torch()
    bundle = load(path)
    spec = json.loads(bundle.files["spec.json"])
    modified = not spec or spec["softcap"] is not None or spec["score"] != "score" or spec.get("seqused_k")
    if modified or spec["mask"] not in ("full", "causal"):
        raise SpecError(
            "PyTorch's attention has no peer for this operator",
            hint="bench full or causal attention without score modifiers or lengths of entries",
            field="bundle",
            value=str(path),
        )
    dtype = torch.bfloat16 if spec["dtype"] == "bf16" else torch.float16
    q, k, v = (
        torch.randn((batch, length, h, d), device="cuda", dtype=dtype)
        for h, d in ((spec["Hq"], spec["Dqk"]), (spec["Hk"], spec["Dqk"]), (spec["Hk"], spec["Dv"]))
    )
    causal = spec["mask"] == "causal"

    def ours() -> Any:
        return bundle(q, k, v)

    def sdpa() -> Any:
        return torch.nn.functional.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            is_causal=causal,
            enable_gqa=spec["Hq"] != spec["Hk"],
        )

    times = time_graphs({"ours": [ours], "sdpa": [sdpa]})
    flops = 2 * batch * spec["Hq"] * length * length * (spec["Dqk"] + spec["Dv"]) * (0.5 if causal else 1)
    ours_ms, sdpa_ms = times["ours"].median_ms, times["sdpa"].median_ms
    return {
        "device": torch.cuda.get_device_name(),
        "B": batch,
        "S": length,
        "ours_ms": round(ours_ms, 4),
        "sdpa_ms": round(sdpa_ms, 4),
        "ratio": round(sdpa_ms / ours_ms, 3),
        "ours_tflops": round(flops / ours_ms / 1e9, 1),
        "sdpa_tflops": round(flops / sdpa_ms / 1e9, 1),
        "ours_eager_ms": round(time_eager(ours), 4),
        "sdpa_eager_ms": round(time_eager(sdpa), 4),
    }
