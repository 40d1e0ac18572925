"""Judging a built kernel: it runs in a process of its own, the verdict is made in this one.

A crash, a hang, a damaged guard band, a changed input, or two runs that differ: each is a rejection.

Not here: what happens in the other process (worker.py), the verdict's course (judge.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from qimeng_attention import runtime
from qimeng_attention.errors import DiagnosticError, EnvironmentMissing, JudgeError
from qimeng_attention.judge.candidate import (
    INPUTS,
    SCALE,
    Stopped,
    approximated_in,
    chosen_sizes,
    given_besides,
    numbers_in,
    sizes_of,
    tiles_of,
)
from qimeng_attention.judge.inputs import GPU, Budget
from qimeng_attention.judge.judge import Progress, Reference, judge_candidate
from qimeng_attention.judge.meaning import Call, Operator, own_sizes_of
from qimeng_attention.judge.own_function import OwnFunction
from qimeng_attention.judge.packed_call import as_packed
from qimeng_attention.judge.process import TIMEOUT_S, Hung, Process
from qimeng_attention.judge.storage import sizes_for, stored
from qimeng_attention.judge.verdict import Verdict
from qimeng_attention.judge.worker import CANARY, POISONS
from qimeng_attention.runtime.expressions import names
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.types import Checked

EXACT = {"i32": np.int32, "i64": np.int64, "bool": np.bool_}  # types whose values are their bits
DEFAULT_TILES = (128, 64)


def judge_bundle(
    path: str | Path,
    spec: AttentionSpec,
    *,
    seed: int = 0,
    budget: Budget = GPU,
    timeout_s: float = TIMEOUT_S,
    progress: Progress | None = None,
    process: Process | None = None,
    own: OwnFunction | None = None,
) -> Verdict:
    """Judge a built kernel on the GPU at hand.

    Args:
        path: the bundle's folder.
        spec: what it must compute.
        seed: entropy of the caller.
        budget: how much to try.
        timeout_s: of each launch.
        progress: called before each case.
        process: in which kernels run one after the other; without one this kernel has its own.
        own: as of `judge_program`.

    Raises:
        BundleError: damaged, or no bundle.
        JudgeError: its tensors, sizes or scalars do not fit the spec.
        EnvironmentMissing: no PyTorch or no GPU.
    """
    bundle = runtime.load(path)
    Operator.of(spec)
    reference = _reference()
    kernels = _kernels(bundle.files)
    with contextlib.ExitStack() as stack:
        place = process or stack.enter_context(Process(timeout_s=timeout_s))
        candidate = Isolated(bundle.manifest, spec, place, kernels, path)
        return judge_candidate(
            candidate,
            spec,
            tiles_of(kernels) if kernels else DEFAULT_TILES,
            seed=seed,
            budget=budget,
            progress=progress,
            reference=reference,
            where="gpu",
            own=own,
        )


def _reference() -> Reference:
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing("judging a kernel needs PyTorch", hint="pip install 'qimeng-attention[gpu]'") from None
    if not torch.cuda.is_available():
        raise EnvironmentMissing(
            "judging a kernel needs an NVIDIA GPU", hint="judge its TL on the CPU: qimeng judge code.tl"
        )
    from qimeng_attention.judge import reference_torch

    return Reference(reference_torch.truth, reference_torch.baseline)


def _kernels(files: Mapping[str, bytes]) -> list[Checked]:
    """Read the program beside the kernel, for what the judge asks of a text; nothing if it does not pass."""
    try:
        return check_text(files["code.tl"].decode(), model=False)
    except (KeyError, DiagnosticError, UnicodeDecodeError):
        return []


class Isolated:
    """A kernel in another process, as a candidate.

    Raises:
        JudgeError: tensors, sizes or scalars that do not fit the spec.
    """

    def __init__(
        self,
        manifest: runtime.Manifest,
        spec: AttentionSpec,
        process: Process,
        kernels: Sequence[Checked] = (),
        path: str | Path = "",
    ) -> None:
        face = manifest.face
        _check_manifest(face, spec)
        self.name = manifest.kernel
        self.numbers, self.approximated = numbers_in(kernels), approximated_in(kernels)
        self.digest = hashlib.sha256(json.dumps(dict(manifest.files), sort_keys=True).encode()).hexdigest()
        heads = {"Hq", "Hk"}
        self.any_heads = heads <= set(face.sizes) and not any(heads & set(names(r.left)) for r in manifest.requires)
        self._chosen = list(manifest.chosen)
        self._manifest, self._spec, self._process, self._path = face, spec, process, str(Path(path).absolute())

    def run(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Array]:
        """Launch twice in the other process; elements never written come back as NaN."""
        try:
            answer = self._process.ask(self._request(call, tensors, layout))
        except Hung as hung:
            raise Stopped(str(hung)) from None
        if error := answer.get("error"):
            self._process.stop()  # after an error a CUDA context is of no use
            raise Stopped(f"the launch failed: {error}")
        if answer["damaged"]:
            self._process.stop()  # what else it wrote to nobody knows
            raise Stopped(f"writes outside of {', '.join(answer['damaged'])}")
        if answer["changed"]:
            raise Stopped(f"changes its input {', '.join(answer['changed'])}")
        shapes = call.shapes()
        return {name: self._output(name, files, shapes[name]) for name, files in answer["outputs"].items()}

    # -------------------------------------------------------------- files
    def _request(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Any]:
        shapes, types = call.shapes(), {t.name: t.dtype for t in self._manifest.tensors}
        cache = stored(self._spec, call, tensors)
        tensors, given = cache.tensors, [*INPUTS, *given_besides(self._spec)]
        for name in given:
            (self._process.folder / f"{name}.in").write_bytes(to_bits(tensors[name], types[name]).tobytes())
        inputs = {n: {"file": f"{n}.in", "dtype": types[n], "shape": tensors[n].shape} for n in given}
        outputs = {
            t.name: {"dtype": t.dtype, "shape": shapes[t.name]} for t in self._manifest.tensors if t.role == "output"
        }
        known = sizes_of(call) | cache.sizes
        sizes = {n: value for n, value in known.items() if n in self._manifest.sizes}
        sizes |= chosen_sizes(self._chosen, call)
        scalars = {x.name: call.scale for x in self._manifest.scalars}
        return {
            "bundle": self._path,
            "inputs": inputs,
            "outputs": outputs,
            "layout": layout,
            "sizes": sizes,
            "scalars": scalars,
        }

    def _output(self, name: str, files: Sequence[str], shape: tuple[int, ...]) -> Array:
        """Read both runs: they agree but for elements that nobody wrote, which hold each run's poison."""
        dtype = self._manifest.tensor(name).dtype
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


def _check_manifest(manifest: runtime.Manifest, spec: AttentionSpec) -> None:
    roles = {t.name: (t.role, t.dtype) for t in manifest.tensors}
    wanted: dict[str, tuple[str, str]] = {
        **dict.fromkeys(INPUTS, ("input", spec.dtype)),
        **{name: ("input", dtype) for name, dtype in given_besides(spec).items()},
        "Out": ("output", spec.dtype),
        **({"Lse": ("output", "f32")} if "LSE" in spec.outputs else {}),
    }
    for name, (role, dtype) in wanted.items():
        if roles.get(name) != (role, dtype):
            found = " ".join(roles[name]) if name in roles else "missing"
            raise JudgeError(
                f"{name} of {manifest.kernel} is {found}, the spec asks for an {role} of {dtype}",
                hint="build the kernel for this spec",
            )
    if unknown := sorted(n for n, (role, _) in roles.items() if n not in (*wanted, "Lse")):
        raise JudgeError(f"{unknown[0]} is no tensor of the spec", hint=f"tensors are {', '.join(wanted)}")
    call = as_packed(Call(1, 1, 1, 1, 1, 1, 1, 1.0, own_sizes_of(spec, 0)), spec)
    known = sizes_of(call) | sizes_for(spec, call)
    if unknown := sorted(set(manifest.sizes) - known.keys()):
        raise JudgeError(f"the size {unknown[0]} is no size of the spec", hint=f"sizes are {', '.join(known)}")
    if [x.name for x in manifest.scalars] != [SCALE]:
        raise JudgeError(
            f"{manifest.kernel} takes no scale, which each call gives",
            hint="build it from a program with `Scalar scale f32 > 0`",
        )


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
