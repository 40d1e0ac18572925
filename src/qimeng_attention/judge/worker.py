"""Runs built kernels in a process of its own: `python -m qimeng_attention.judge.worker FOLDER`.

Each line on standard input is a request (JSON) that names a bundle, each line on standard output its answer. Tensors
travel as files in FOLDER. The worker knows no reference and gives no verdict: it launches, twice, on outputs filled
with two different poisons between guard bands, and tells whether guards and inputs are as they were.

Not here: who asks and who judges (device.py), who waits (process.py).
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from math import prod
from pathlib import Path
from typing import Any, TextIO

GUARD = 1024  # elements on each side of an output: 2 KB keeps any alignment a kernel may ask for
CANARY = {"fp16": 61440.0, "bf16": 2.0**100, "f32": 2.0**100}  # finite: fmaxf and comparisons hide NaN
POISONS = ("nan", "canary")
GAP = 8  # elements between the rows of a padded layout
GAPS = {"i32": -(1 << 30), "i64": -(1 << 62), "bool": True}  # what they hold where there is no NaN


def main() -> None:
    """Answer requests until standard input ends."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    place, bundle = "", None
    for line in sys.stdin:
        request = json.loads(line)
        if request["bundle"] != place:
            from qimeng_attention.runtime import load

            place, bundle = request["bundle"], load(request["bundle"])
        _answer(answers, _serve(bundle, Path(sys.argv[1]), request))


def _answer(answers: TextIO, fields: dict[str, Any]) -> None:
    answers.write(json.dumps(fields) + "\n")
    answers.flush()


def _serve(bundle: Any, folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    try:
        return launched(bundle, folder, request)
    except Exception as error:  # a launch may fail in any way, and the answer must say how
        return {"error": f"{type(error).__name__}: {error}"}


def launched(bundle: Any, folder: Path, request: dict[str, Any], device: str = "cuda") -> dict[str, Any]:
    """Launch once for each poison; give damaged guards, changed inputs and the files of the outputs."""
    import torch

    memory = _Memory(torch, device)
    inputs, storages = {}, {}
    for name, a in request["inputs"].items():
        inputs[name], storages[name] = memory.input(folder / a["file"], a, request["layout"])
    before = {name: memory.digest(storage) for name, storage in storages.items()}
    damaged: set[str] = set()
    changed: set[str] = set()
    files: dict[str, list[str]] = {name: [] for name in request["outputs"]}
    for poison in POISONS:
        held = {name: memory.output(a, poison) for name, a in request["outputs"].items()}
        outputs = {name: view for name, (view, _) in held.items()}
        bundle.launch({**inputs, **outputs}, request["sizes"], request["scalars"])
        if device == "cuda":
            torch.cuda.synchronize()
        for name, (view, whole) in held.items():
            if not memory.guards_intact(whole, request["outputs"][name], poison):
                damaged.add(name)
            files[name].append(f"{name}.{poison}.out")
            (folder / files[name][-1]).write_bytes(memory.raw(view))
        changed |= {name for name, storage in storages.items() if memory.digest(storage) != before[name]}
    return {"damaged": sorted(damaged), "changed": sorted(changed), "outputs": files}


class _Memory:
    """Tensors of a call, and the memory around them."""

    def __init__(self, torch: Any, device: str) -> None:
        self.torch, self.device = torch, device
        self.types = {"fp16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}
        self.types |= {"i32": torch.int32, "i64": torch.int64, "bool": torch.bool}

    def input(self, file: Path, a: dict[str, Any], layout: str) -> tuple[Any, Any]:
        """Give a tensor in the layout asked for, and all memory it lies in; gaps hold NaN, or what stands for it."""
        torch, kind, shape = self.torch, self.types[a["dtype"]], a["shape"]
        data = torch.frombuffer(bytearray(file.read_bytes()), dtype=kind) if prod(shape) else torch.empty(0, dtype=kind)
        tensor = data.reshape(shape).to(self.device)
        if layout == "heads first" and len(shape) in (3, 4):  # of others the last stride would not stay 1
            whole = tensor.transpose(-3, -2).contiguous()
            return whole.transpose(-3, -2), whole
        if layout == "padded rows":
            gap = GAPS.get(a["dtype"], float("nan"))
            whole = torch.full((*shape[:-1], shape[-1] + GAP), gap, dtype=kind, device=self.device)
            whole[..., : shape[-1]] = tensor
            return whole[..., : shape[-1]], whole
        return tensor, tensor

    def output(self, a: dict[str, Any], poison: str) -> tuple[Any, Any]:
        """Give an output filled with poison, and the memory around it, filled alike."""
        count = prod(a["shape"])
        whole = self.poisoned(count + 2 * GUARD, a["dtype"], poison)
        return whole[GUARD : GUARD + count].reshape(a["shape"]), whole

    def poisoned(self, count: int, dtype: str, poison: str) -> Any:
        """Give memory filled with poison."""
        value = float("nan") if poison == "nan" else CANARY[dtype]
        return self.torch.full((count,), value, dtype=self.types[dtype], device=self.device)

    def guards_intact(self, whole: Any, a: dict[str, Any], poison: str) -> bool:
        """Tell whether the guard bands hold what they were filled with."""
        guards = self.torch.cat([whole[:GUARD], whole[-GUARD:]])
        return self.raw(guards) == self.raw(self.poisoned(2 * GUARD, a["dtype"], poison))

    def digest(self, storage: Any) -> str:
        """Give the digest of all of a tensor's memory."""
        return hashlib.sha256(self.raw(storage)).hexdigest()

    def raw(self, tensor: Any) -> bytes:
        """Give the bytes of a tensor, in order."""
        torch = self.torch
        bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
        data: bytes = tensor.contiguous().view(bits).cpu().numpy().tobytes()
        return data


if __name__ == "__main__":
    main()
