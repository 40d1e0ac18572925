"""Launches of one kernel in the process beside the judge, and what their answers mean.

A crash, a hang, a damaged guard band, a changed input, or two runs that differ: each stops the candidate with its
reason. Tensors go by the manifest's names.

Not here: what happens in the other process (worker.py), what a kernel is asked (device.py, plain_bundle.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_attention import runtime
from qimeng_attention.judge.candidate import Stopped
from qimeng_attention.judge.process import Hung, Process
from qimeng_attention.judge.worker import CANARY, POISONS
from qimeng_attention.tl.numerics import Array

EXACT = {"i32": np.int32, "i64": np.int64, "bool": np.bool_}  # types whose values are their bits


MOST_HANGS = 2  # of one bundle: what hangs at two shapes has failed, and each hang takes the whole time of a launch


class Launches:
    """A bundle's kernels in another process."""

    def __init__(self, face: runtime.Manifest, process: Process, path: str | Path) -> None:
        self._face, self._process, self._path = face, process, str(Path(path).absolute())
        self._types = {t.name: t.dtype for t in face.tensors}
        self._hangs = 0

    def run(
        self,
        tensors: Mapping[str, Array],
        shapes: Mapping[str, tuple[int, ...]],
        sizes: Mapping[str, int],
        scalars: Mapping[str, float],
        layout: str,
    ) -> dict[str, Array]:
        """Launch twice; elements never written come back as NaN.

        Args:
            tensors: the inputs, values of their types.
            shapes: of the outputs at least.
            sizes: as a launch takes them.
            scalars: as a launch takes them.
            layout: of the inputs.

        Raises:
            Stopped: there are no outputs to judge.
        """
        outputs = {t.name: shapes[t.name] for t in self._face.tensors if t.role == "output"}
        request = {
            "bundle": self._path,
            "inputs": {name: self._written(name, a) for name, a in tensors.items()},
            "outputs": {name: {"dtype": self._types[name], "shape": shape} for name, shape in outputs.items()},
            "layout": layout,
            "sizes": dict(sizes),
            "scalars": dict(scalars),
        }
        found = self._answered(request)
        return {name: self._output(name, found.get(name, ()), shape) for name, shape in outputs.items()}

    def _written(self, name: str, a: Array) -> dict[str, Any]:
        file, dtype = f"{name}.in", self._types[name]
        (self._process.folder / file).write_bytes(to_bits(a, dtype).tobytes())
        return {"file": file, "dtype": dtype, "shape": a.shape}

    def _answered(self, request: dict[str, Any]) -> dict[str, list[str]]:
        """Give the files of each output, if nothing went wrong."""
        if self._hangs >= MOST_HANGS:
            raise Stopped(f"not launched: the kernel hung {self._hangs} times before")
        try:
            answer = self._process.ask(request)
        except Hung as hung:
            self._hangs += 1
            raise Stopped(str(hung)) from None
        if error := answer.get("error"):
            self._process.stop()  # after an error a CUDA context is of no use
            raise Stopped(f"the launch failed: {error}")
        if answer["damaged"]:
            self._process.stop()  # what else it wrote to nobody knows
            raise Stopped(f"writes outside of {', '.join(answer['damaged'])}")
        if answer["changed"]:
            raise Stopped(f"changes its input {', '.join(answer['changed'])}")
        found: dict[str, list[str]] = answer["outputs"]
        return found

    def _output(self, name: str, files: Sequence[str], shape: tuple[int, ...]) -> Array:
        """Read both runs: they agree but for elements that nobody wrote, which hold each run's poison."""
        dtype = self._types[name]
        if len(files) != len(POISONS):
            raise Stopped(f"the process gave {len(files)} runs of {name}")
        runs = [from_bits((self._process.folder / Path(f).name).read_bytes(), dtype) for f in files]
        if any(r.size != int(np.prod(shape)) for r in runs):
            raise Stopped(f"the process gave {name} in another size")
        first, second = runs
        never = np.isnan(first) & (second == np.float32(CANARY[dtype]))
        same = (first == second) | (np.isnan(first) & np.isnan(second)) | never
        if not same.all():
            place = [int(i) for i in np.unravel_index(int(np.argmin(same)), shape)]
            raise Stopped(
                f"{name}{place} differs between two runs on the same inputs "
                f"({int((~same).sum())} of {same.size} elements)"
            )
        return first.reshape(shape)


def to_bits(a: Array, dtype: str) -> Array:
    """Give the bits of values that are of a type already."""
    if dtype in EXACT:
        return np.ascontiguousarray(a, EXACT[dtype])
    x = np.ascontiguousarray(a, np.float32)
    if dtype == "fp16":
        return x.astype(np.float16).view(np.uint16)
    if dtype == "bf16":
        return (x.view(np.uint32) >> 16).astype(np.uint16)
    return x.view(np.uint32)


def from_bits(data: bytes, dtype: str) -> Array:
    """Give the values of bits, flat."""
    if dtype == "fp16":
        return np.frombuffer(data, np.float16).astype(np.float32)
    if dtype == "bf16":
        return (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(data, np.float32)
