"""What this machine can do, for `qimeng doctor`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import metadata

from qimeng_attention import __version__
from qimeng_attention.build import Cache, find_toolchain
from qimeng_attention.errors import QimengError
from qimeng_attention.workflow.present import detect


@dataclass(frozen=True)
class Finding:
    """One thing a machine has or lacks."""

    what: str
    found: str
    gives: str
    remedy: str = ""


def examine() -> list[Finding]:
    """Look at everything the stages need; nothing here raises."""
    findings = [
        Finding("qimeng-attention", __version__, "check, interpret, schedule, translate, judge on the CPU"),
        Finding("python", sys.version.split()[0], "3.11 or later is needed"),
        _compiler(),
        _library("cuda-core", "compile and launch", "pip install 'qimeng-attention[build]'"),
        _pytorch(),
        _library("transformers", "kernels as the attention of models", "pip install 'qimeng-attention[transformers]'"),
        _gpu(),
    ]
    opened = Cache.open()
    findings.append(
        Finding(
            "cache",
            opened.note or "writable",
            "compiled kernels are kept",
            "set QIMENG_CACHE_DIR to a folder you own" if opened.note else "",
        )
    )
    return findings


def _compiler() -> Finding:
    try:
        found = find_toolchain()
    except QimengError as error:
        return Finding("NVRTC and headers", "missing", "compile kernels, without a GPU too", error.hint)
    return Finding(
        "NVRTC and headers",
        ", ".join(f"{k} {v}" for k, v in found.versions.items()),
        "compile kernels, without a GPU too",
    )


def _library(name: str, gives: str, remedy: str) -> Finding:
    try:
        return Finding(name, metadata.version(name), gives)
    except metadata.PackageNotFoundError:
        return Finding(name, "missing", gives, remedy)


def _pytorch() -> Finding:
    found = _library("torch", "run kernels as PyTorch operators", "pip install 'qimeng-attention[gpu]'")
    if not found.found.endswith("+cpu"):
        return found
    remedy = "on a machine with a GPU: pip uninstall torch, then pip install 'qimeng-attention[gpu]'"
    return Finding("torch", f"{found.found}, a CPU build", "references in PyTorch, tracing; no kernel is run", remedy)


def _gpu() -> Finding:
    try:
        target = detect()
    except QimengError:
        return Finding(
            "GPU",
            "none",
            "run, judge and time kernels",
            "everything else works without; name a target with --target",
        )
    return Finding("GPU", f"{target.name} ({target.arch})", "run, judge and time kernels")
