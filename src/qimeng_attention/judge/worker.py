"""Runs a built kernel in a process of its own: `python -m qimeng_attention.judge.worker BUNDLE FOLDER`.

Each line on standard input is a request (JSON), each line on standard output its answer. Tensors travel as
files in FOLDER. The worker knows no reference and gives no verdict: it launches, twice, on outputs filled
with two different poisons between guard bands, and tells whether guards and inputs are as they were.

Not here: who asks, who waits and who judges (device.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

GUARD = 1024  # elements on each side of an output: 2 KB keeps any alignment a kernel may ask for
CANARY = {"fp16": 61440.0, "bf16": 2.0**100, "f32": 2.0**100}  # finite: fmaxf and comparisons hide NaN
POISONS = ("nan", "canary")
GAP = 8  # elements between the rows of a padded layout


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    from qimeng_attention.runtime import load

    bundle = load(sys.argv[1])
    for line in sys.stdin:
        _answer(answers, _serve(bundle, Path(sys.argv[2]), json.loads(line)))


def _answer(answers: TextIO, fields: dict[str, Any]) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def _serve(bundle: Any, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return _launched(bundle, folder, request)
    except Exception as error:  # a launch may fail in any way, and the answer must say how
        return {"error": f"{type(error).__name__}: {error}"}


def _launched(bundle: Any, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Launch once for each poison; give damaged guards, changed inputs and the files of the outputs."""
    import torch

    inputs, storages = {}, {}
    for name, a in request["inputs"].items():
        inputs[name], storages[name] = _input(
            torch, folder / a["file"], a["dtype"], a["shape"], request["layout"]
        )
    before = {name: _digest(torch, storage) for name, storage in storages.items()}
    damaged: set[str] = set()
    files: dict[str, list[str]] = {name: [] for name in request["outputs"]}
    for poison in POISONS:
        held = {
            name: _guarded(torch, a["shape"], a["dtype"], poison) for name, a in request["outputs"].items()
        }
        bundle.launch(
            {**inputs, **{name: view for name, (view, _) in held.items()}},
            request["sizes"],
            request["scalars"],
        )
        torch.cuda.synchronize()
        for name, (view, whole) in held.items():
            bits, clean = (
                _bits(torch, whole),
                _bits(
                    torch, _poisoned(torch, 2 * GUARD, whole.dtype, request["outputs"][name]["dtype"], poison)
                ),
            )
            guards = torch.cat([bits[:GUARD], bits[-GUARD:]])
            if not torch.equal(guards, clean):
                damaged.add(name)
            files[name].append(f"{name}.{poison}.out")
            (folder / files[name][-1]).write_bytes(_bits(torch, view.contiguous()).cpu().numpy().tobytes())
    changed = [name for name, storage in storages.items() if _digest(torch, storage) != before[name]]
    return {"damaged": sorted(damaged), "changed": changed, "outputs": files}


def _input(torch: Any, file: Path, dtype: str, shape: list[int], layout: str) -> tuple[Any, Any]:
    """Give a tensor in the layout asked for, and all memory it lies in."""
    kind = _dtype(torch, dtype)
    data = (
        torch.frombuffer(bytearray(file.read_bytes()), dtype=kind)
        if _count(shape)
        else torch.empty(0, dtype=kind)
    )
    tensor = data.reshape(shape).cuda()
    if layout == "heads first" and len(shape) == 4:
        whole = tensor.transpose(1, 2).contiguous()
        return whole.transpose(1, 2), whole
    if layout == "padded rows":
        whole = torch.full((*shape[:-1], shape[-1] + GAP), float("nan"), dtype=kind, device="cuda")
        whole[..., : shape[-1]] = tensor
        return whole[..., : shape[-1]], whole
    return tensor, tensor


def _guarded(torch: Any, shape: list[int], dtype: str, poison: str) -> tuple[Any, Any]:
    """Give an output filled with poison, and the memory around it."""
    count = _count(shape)
    whole = _poisoned(torch, count + 2 * GUARD, _dtype(torch, dtype), dtype, poison)
    return whole[GUARD : GUARD + count].reshape(shape), whole


def _poisoned(torch: Any, count: int, kind: Any, dtype: str, poison: str) -> Any:
    return torch.full((count,), float("nan") if poison == "nan" else CANARY[dtype], dtype=kind, device="cuda")


def _digest(torch: Any, storage: Any) -> str:
    return hashlib.sha256(_bits(torch, storage).cpu().numpy().tobytes()).hexdigest()


def _bits(torch: Any, tensor: Any) -> Any:
    return tensor.view(torch.int16 if tensor.element_size() == 2 else torch.int32)


def _dtype(torch: Any, dtype: str) -> Any:
    return {"fp16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}[dtype]


def _count(shape: list[int]) -> int:
    count = 1
    for extent in shape:
        count *= extent
    return count


if __name__ == "__main__":
    main()
