"""Judging a bundle that no description covers, on the GPU at hand, against a function alone.

Everything is called by the names of the manifest, whether the kernel came from TL or somebody wrote it in CUDA. The
program beside the kernel is asked for what a manifest does not say, its tiles and the types inside, if it has the
same tensors and sizes.

Not here: the verdict's course (function.py), asking the other process (launches.py), bundles with a description
(device.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Literal

import numpy as np

from qimeng_attention import runtime
from qimeng_attention.errors import EnvironmentMissing, JudgeError
from qimeng_attention.judge.candidate import CHOSEN
from qimeng_attention.judge.device import DEFAULT_TILES, digest_of_bundle, need_gpu, program_beside
from qimeng_attention.judge.function import judge_plain
from qimeng_attention.judge.inputs import GPU, LAYOUTS
from qimeng_attention.judge.judge import Progress
from qimeng_attention.judge.launches import Launches
from qimeng_attention.judge.plain import Program, no_shape
from qimeng_attention.judge.plain_families import HEADS, Declared, scalar_values, sizes_around
from qimeng_attention.judge.process import TIMEOUT_S, Process
from qimeng_attention.judge.reference_process import Place, Reference
from qimeng_attention.judge.verdict import Verdict
from qimeng_attention.runtime.checks import COMPARE
from qimeng_attention.runtime.expressions import evaluate
from qimeng_attention.runtime.launcher import runs_on
from qimeng_attention.tl.numerics import FLOAT_TYPES, Array, unit_roundoff
from qimeng_attention.tl.types import Checked

CUDA_ALONE = "its source is CUDA, without TL that a CPU could interpret: judge it on a machine with a GPU"


def judge_bundle_by_function(
    path: str | Path,
    reference: Place | Reference,
    *,
    seed: int = 0,
    sizes: Sequence[Mapping[str, int]] | None = None,
    failures: int = GPU.failures,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
    process: Process | None = None,
) -> Verdict:
    """Judge a built kernel on the GPU at hand against a reference function.

    Args:
        path: the bundle's folder.
        reference: as of `judge_function`.
        seed: entropy of the caller.
        sizes: values of the run-time sizes to try; by default lengths around the tiles.
        failures: cases that fail before the rest is left out.
        timeout_s: of each launch.
        progress: called before each case.
        process: in which kernels run one after the other; without one this kernel has its own.

    Raises:
        BundleError: damaged, or no bundle.
        JudgeError: something the function does wrong, or a kernel that takes nothing the judge could give it.
        EnvironmentMissing: no PyTorch, no GPU, or another one than the kernel is built for.
    """
    bundle = runtime.load(path)
    kernels = program_beside(bundle.files)
    need_gpu("judge its TL on the CPU: qimeng judge scheduled.tl --reference ..." if kernels else CUDA_ALONE)
    _need_gpu_for(bundle.manifest)
    with contextlib.ExitStack() as stack:
        place = process or stack.enter_context(Process(timeout_s=timeout_s))
        candidate = Built(bundle.manifest, place, kernels, path, failures)
        return judge_plain(candidate, reference, seed=seed, sizes=sizes, progress=progress)


def _need_gpu_for(manifest: runtime.Manifest) -> None:
    """Refuse a kernel for another GPU: that it cannot be launched says nothing of what it computes."""
    import torch

    major, minor = torch.cuda.get_device_capability()
    if not runs_on(manifest.built_arch, (major, minor)):
        raise EnvironmentMissing(
            f"{manifest.kernel} is built for {manifest.built_arch}, and this GPU is an sm_{major}{minor}",
            hint=f"build it with --arch sm_{major}{minor}, or judge it on a GPU that it is built for",
        )


class Built:
    """A bundle's kernels in another process, of which nothing is known but the manifest.

    Raises:
        JudgeError: an output that holds no floating values.
    """

    where: Literal["cpu", "gpu"] = "gpu"

    def __init__(
        self,
        manifest: runtime.Manifest,
        process: Process,
        kernels: Sequence[Checked] = (),
        path: str | Path = "",
        failures: int | None = GPU.failures,
    ) -> None:
        self._manifest, self._face = manifest, manifest.face
        self.name, self.digest, self.failures = manifest.kernel, digest_of_bundle(manifest), failures
        self.inputs: Mapping[str, str] = {t.name: t.dtype for t in self._face.tensors if t.role == "input"}
        self.outputs: Mapping[str, str] = {t.name: t.dtype for t in self._face.tensors if t.role == "output"}
        for name, dtype in self.outputs.items():
            if dtype not in FLOAT_TYPES:
                raise JudgeError(
                    f"the output {name} of {manifest.kernel} is {dtype}, and the judge compares floating values",
                    hint=f"let it give {name} as f32",
                )
        self._program = self._fitting(kernels)
        self.fixed: Mapping[str, int] = self._program.fixed if self._program is not None else {}
        own = [t.dtype for k in manifest.kernels for t in k.tensors if t.dtype in FLOAT_TYPES]
        self.narrowest = self._program.narrowest if self._program is not None else max(own, key=unit_roundoff)
        self._launches = Launches(self._face, process, path)

    def _fitting(self, kernels: Sequence[Checked]) -> Program | None:
        """Give the program beside the kernel, if it declares what the manifest does."""
        if not kernels or {n for k in kernels for n in k.sizes} - {*self._manifest.chosen} != {*self._face.sizes}:
            return None
        program = Program(kernels)
        if (program.inputs, program.outputs) != (self.inputs, self.outputs):
            return None
        sizes = program.sizes_to_try()[0]
        declared = program.shapes(sizes)
        return program if all(declared[n] == shape for n, shape in self.shapes(sizes).items()) else None

    def sizes_to_try(self) -> list[dict[str, int]]:
        """Choose lengths around the tiles: those of the program beside the kernel, or those that its grid tells.

        Rows of some tensors must begin at multiples of 16 bytes: their sizes are rounded up. Sizes that the launcher
        refuses all the same are left out.

        Raises:
            JudgeError: none are left.
        """
        tried = self._program.sizes_to_try() if self._program is not None else self._sizes_around()
        mended = [dict(t) for t in dict.fromkeys(tuple(self._rounded_up(sizes).items()) for sizes in tried)]
        taken = [sizes for sizes in mended if self._takes(sizes)]
        if not taken:
            raise JudgeError(
                f"{self.name} takes none of the sizes that the judge would try, such as {tried[0]}",
                hint="judge it in Python, with sizes=[...] that it takes",
            )
        return taken

    def _sizes_around(self) -> list[dict[str, int]]:
        tiles = {n: DEFAULT_TILES[1] for n in self._face.sizes if n not in HEADS}
        for axis in (axis for kernel in self._manifest.kernels for axis in kernel.grid):
            match axis.stop:
                case ("ceildiv", str(name), int(tile)) if name in tiles:
                    tiles[name] = tile
        return sizes_around(self._face.sizes, tiles)

    def _rounded_up(self, sizes: Mapping[str, int]) -> dict[str, int]:
        found = dict(sizes)
        for t in self._face.tensors:
            step, last = t.align // t.item_bytes, t.dims[-1]
            if isinstance(last, str) and len(t.dims) > 1:
                found[last] = -(-found[last] // step) * step
        return found

    def _takes(self, sizes: Mapping[str, int]) -> bool:
        """Tell whether the manifest admits sizes: what must hold between them, and where rows begin."""
        for r in self._manifest.requires:
            if not COMPARE[r.op](evaluate(r.left, sizes), evaluate(r.right, sizes)):
                return False
        shapes = self.shapes(sizes)
        rows = [(shapes[t.name], t.align // t.item_bytes) for t in self._face.tensors]
        return all(prod(shape[:-1]) <= 1 or shape[-1] % step == 0 for shape, step in rows)

    def shapes(self, sizes: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """Give the shape of each tensor."""
        if missing := [n for n in self._face.sizes if n not in sizes]:
            raise JudgeError(f"{self.name} takes the size {missing[0]}, and {dict(sizes)} has none", hint="name it too")
        found = {}
        for t in self._face.tensors:
            try:
                found[t.name] = tuple(evaluate(dim, sizes) for dim in t.dims)
            except ZeroDivisionError as error:
                raise no_shape(t.name, sizes, error) from None
        return found

    def scalars(self, random: np.random.Generator, sizes: Mapping[str, int]) -> dict[str, float]:
        """Draw a value for each scalar that the manifest admits."""
        return scalar_values(random, [Declared(x.name, x.op or "", x.bound) for x in self._face.scalars])

    def run(
        self, number: int, sizes: Mapping[str, int], tensors: Mapping[str, Array], scalars: Mapping[str, float]
    ) -> dict[str, Array]:
        """Launch twice; strides, and what the launcher may choose, differ from case to case."""
        own = {n: sizes[n] for n in self._face.sizes}
        own |= {n: sizes.get(n, CHOSEN[number % len(CHOSEN)]) for n in self._manifest.chosen}
        return self._launches.run(tensors, self.shapes(sizes), own, scalars, LAYOUTS[number % len(LAYOUTS)])
