"""Judging a built kernel: it runs in a process of its own, the verdict is made in this one.

A crash, a hang, a damaged guard band, a changed input, or two runs that differ: each is a rejection.

Not here: asking the other process (launches.py), what happens in it (worker.py), the verdict's course (judge.py),
bundles without a description (plain_bundle.py).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from qimeng_attention import runtime
from qimeng_attention.errors import DiagnosticError, EnvironmentMissing, JudgeError
from qimeng_attention.judge.candidate import (
    INPUTS,
    SCALE,
    approximated_in,
    chosen_sizes,
    given_besides,
    numbers_in,
    sizes_of,
    tiles_of,
)
from qimeng_attention.judge.inputs import GPU, Budget
from qimeng_attention.judge.judge import Progress, Reference, judge_candidate
from qimeng_attention.judge.launches import Launches
from qimeng_attention.judge.meaning import Call, Operator, own_sizes_of
from qimeng_attention.judge.own_function import OwnFunction
from qimeng_attention.judge.packed_call import as_packed
from qimeng_attention.judge.process import TIMEOUT_S, Process
from qimeng_attention.judge.storage import sizes_for, stored
from qimeng_attention.judge.verdict import Verdict
from qimeng_attention.runtime.expressions import names
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.types import Checked

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
    kernels = program_beside(bundle.files)
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


def need_gpu(hint: str = "judge its TL on the CPU: qimeng judge code.tl") -> None:
    """Refuse to judge a kernel where none can run.

    Raises:
        EnvironmentMissing: no PyTorch or no GPU.
    """
    try:
        import torch
    except ImportError:
        raise EnvironmentMissing("judging a kernel needs PyTorch", hint="pip install 'qimeng-attention[gpu]'") from None
    if not torch.cuda.is_available():
        raise EnvironmentMissing("judging a kernel needs an NVIDIA GPU", hint=hint)


def _reference() -> Reference:
    need_gpu()
    from qimeng_attention.judge import reference_torch

    return Reference(reference_torch.truth, reference_torch.baseline)


def program_beside(files: Mapping[str, bytes]) -> list[Checked]:
    """Read the program beside the kernel, for what the judge asks of a text; nothing if it does not pass."""
    try:
        return check_text(files["code.tl"].decode(), model=False)
    except (KeyError, DiagnosticError, UnicodeDecodeError):
        return []


def digest_of_bundle(manifest: runtime.Manifest) -> str:
    """Give the digest of all files of a bundle."""
    return hashlib.sha256(json.dumps(dict(manifest.files), sort_keys=True).encode()).hexdigest()


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
        self.digest = digest_of_bundle(manifest)
        heads = {"Hq", "Hk"}
        self.any_heads = heads <= set(face.sizes) and not any(heads & set(names(r.left)) for r in manifest.requires)
        self._chosen = list(manifest.chosen)
        self._manifest, self._spec, self._launches = face, spec, Launches(face, process, path)

    def run(self, call: Call, tensors: Mapping[str, Array], layout: str) -> dict[str, Array]:
        """Launch twice in the other process; elements never written come back as NaN."""
        cache = stored(self._spec, call, tensors)
        given = {name: cache.tensors[name] for name in (*INPUTS, *given_besides(self._spec))}
        known = sizes_of(call) | cache.sizes
        sizes = {n: value for n, value in known.items() if n in self._manifest.sizes}
        sizes |= chosen_sizes(self._chosen, call)
        scalars = {x.name: call.scale for x in self._manifest.scalars}
        return self._launches.run(given, call.shapes(), sizes, scalars, layout)


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
