"""CuTe C++ to a cubin: NVRTC from pip wheels, a cache of cubins, a report on what the kernel asks of the GPU.

No GPU and no toolkit are needed, and importing this imports no CUDA module. Sources include the package's own
headers by name (`#include "sm80.cuh"`); their texts are given to the compiler, and to the cache's key, as
they are.

Not here: making the source (translate), loading and launching the cubin (runtime).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from typing import Any

from qimeng_attention.build.apart import compile_apart
from qimeng_attention.build.cache import Cache, CacheEntry, CacheStats, cache_key
from qimeng_attention.build.disassembly import Loop
from qimeng_attention.build.nvrtc import CompileError, CompileOptions, CompileResult, compile_cubin, diagnose
from qimeng_attention.build.occupancy import Occupancy, occupancy
from qimeng_attention.build.sass import ResourceReport, entries, report
from qimeng_attention.build.spills import RULE, compile_without_spills
from qimeng_attention.build.toolchain import Toolchain, find_toolchain
from qimeng_attention.errors import BuildError
from qimeng_attention.targets import Target

__all__ = [
    "Built",
    "Cache",
    "CacheEntry",
    "CacheStats",
    "CompileError",
    "CompileOptions",
    "CompileResult",
    "Loop",
    "Occupancy",
    "ResourceReport",
    "Toolchain",
    "build",
    "cache_key",
    "compile_apart",
    "compile_cubin",
    "diagnose",
    "find_toolchain",
    "occupancy",
    "prelude",
    "report",
]


ROLES_HEADER = '#include "sm90.cuh"'  # what the source of a kernel of roles begins with


@dataclass(frozen=True, slots=True)
class Built:
    """A finished kernel: what runs, what it was made from, and by what."""

    name: str  # of the kernel in the cubin
    cubin: bytes
    arch: str
    source: str
    report: ResourceReport
    seconds: float  # that compiling took, when it was compiled
    cached: bool
    versions: Mapping[str, str]  # nvrtc, cuda, cccl, cutlass
    log: str  # the compiler's
    notes: tuple[str, ...] = ()  # a cache that could not be used

    def to_json(self) -> dict[str, Any]:
        """Give everything but the cubin and the texts."""
        return {
            "name": self.name,
            "arch": self.arch,
            "report": self.report.to_json(),
            "seconds": self.seconds,
            "cached": self.cached,
            "versions": dict(self.versions),
            "notes": list(self.notes),
        }


def build(
    source: str,
    *,
    name: str,
    arch: str,
    threads: int,
    shared_bytes: int,
    target: Target,
    cache: Cache | None = None,
    options: CompileOptions | None = None,
    toolchain: Toolchain | None = None,
    apart: bool = False,
) -> Built:
    """Compile a kernel, or take it from the cache, and report on it.

    Args:
        source: CUDA C++ that exports `name` as `extern "C" __global__`.
        name: the kernel's name.
        arch: what to compile for, "sm_90a"; mostly the target's own.
        threads: per block.
        shared_bytes: dynamic shared memory per block.
        target: the GPU whose limits the report's occupancy is computed with.
        cache: None opens the user's; `Cache.disabled()` keeps nothing.
        options: None takes the defaults.
        toolchain: None finds the installed one.
        apart: compile in a process of its own, which is ended when it takes too long: for a source of somebody else's.

    Raises:
        CompileError: the compiler refused; its diagnostics name lines of TL.
        BuildError: the source has no kernel of that name, or is of roles and the architecture is not the target's own.
        EnvironmentMissing: a part of the tool chain is not there.
    """
    tools, chosen, kept = toolchain or find_toolchain(), options or CompileOptions(), cache or Cache.open()
    headers = prelude()
    _require_arch(source, arch, target)

    fixed: dict[str, Any] = {"arch": arch, "name": name, "toolchain": tools, "headers": headers}
    compiled = partial(_compiled, source, chosen, apart, fixed)
    made_by: dict[str, Any] = {"options": (*chosen.flags(), RULE), "toolchain": tools.key()}
    entry, cached = kept.get_or_build(cache_key(source, name=name, prelude=headers, arch=arch, **made_by), compiled)
    log = entry.facts["log"]
    launch: dict[str, Any] = {"threads": threads, "shared_dynamic_bytes": shared_bytes, "target": target}
    resources_used = report(entry.cubin, kernel=name, toolchain=tools, log=log, **launch)
    _require_overlap(resources_used.warnings, log)
    return Built(
        name=name,
        cubin=entry.cubin,
        arch=arch,
        source=source,
        report=_with_note(resources_used, entry.facts["remark"]),
        seconds=entry.facts["seconds"],
        cached=cached,
        versions=entry.facts["versions"],
        log=log,
        notes=(kept.note,) if kept.note else (),
    )


def _compiled(source: str, options: CompileOptions, apart: bool, fixed: Mapping[str, Any]) -> CacheEntry:
    compiler = compile_apart if apart else compile_cubin
    result, remark = compile_without_spills(
        lambda chosen: compiler(source, options=chosen, **fixed), options, ROLES_HEADER in source
    )
    _require_kernel(fixed["name"], result.log)
    facts = {"arch": fixed["arch"], "log": result.log, "seconds": result.seconds}
    return CacheEntry(source, result.cubin, facts | {"versions": fixed["toolchain"].versions, "remark": remark})


def _with_note(found: ResourceReport, remark: str) -> ResourceReport:
    return replace(found, notes=(*found.notes, remark)) if remark else found


def _require_overlap(warnings: tuple[str, ...], log: str) -> None:
    """Refuse a kernel whose wgmma ptxas runs one after the other: it would be right, and far slower than it says."""
    for warning in warnings:
        if "wgmma" in warning and "serializ" in warning.lower():
            raise BuildError(
                f"ptxas runs the asynchronous products of this kernel one after the other: {warning}",
                hint="touch no result before its `Wait gemm pending ...`, and keep products out of branches",
                log=log,
            )


def prelude() -> dict[str, str]:
    """Give the package's own headers, text by name; the translator, whose data they are, is not imported."""
    folder = resources.files("qimeng_attention") / "translate" / "prelude"
    found = [file for file in folder.iterdir() if file.name.endswith(".cuh")] if folder.is_dir() else []
    return {file.name: file.read_text(encoding="utf-8") for file in sorted(found, key=lambda file: file.name)}


def _require_arch(source: str, arch: str, target: Target) -> None:
    """Refuse a kernel of roles for an architecture without its instructions, before the compiler does so at length."""
    if ROLES_HEADER in source and arch != target.arch:
        raise BuildError(
            f"a kernel of roles for {target.name} has instructions of {target.arch} alone, and none for {arch}",
            hint=f"leave --arch out, or generate it for another GPU: --target A100 --arch {arch}",
        )


def _require_kernel(name: str, log: str) -> None:
    exported = entries(log)
    if name not in exported:
        raise BuildError(
            f"the source exports no kernel named {name}; it has {', '.join(exported) or 'none'}",
            hint=f'declare it extern "C" __global__ void {name}(...)',
            log=log,
        )
