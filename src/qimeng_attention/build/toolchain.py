"""Where the compiler, the headers and the disassembler are, and of which versions: pip wheels only.

Two layouts of NVIDIA's wheels are known: one folder `nvidia/cu13`, and one folder per component
(`nvidia/cuda_nvrtc`, ...) of the 12 series; the installed cuda-bindings decide which one is taken. Finding
imports neither a CUDA module nor `cutlass_library` (whose import pulls in a dozen others).

Not here: compiling (nvrtc.py).
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from qimeng_attention.errors import EnvironmentMissing

INSTALL = "pip install 'qimeng-attention[build]'"
CUTLASS_VARIABLE = "QIMENG_CUTLASS_DIR"


@dataclass(frozen=True, slots=True)
class Toolchain:
    """The parts that make and read cubins; paths stay out of `versions` and `key`."""

    nvrtc: str  # version of the compiler, "13.2.86"
    cuda: str  # version of the CUDA headers, "13.2"
    cccl: str  # version of the C++ core libraries' headers, "3.2.0"
    cutlass: str  # version of the CuTe headers, "4.2.0"
    includes: tuple[Path, ...]  # in the order that the compiler searches them
    nvdisasm: Path | None  # None where the wheel is not installed
    cuobjdump: Path | None
    cutlass_stamp: str = ""  # of a checkout named by QIMENG_CUTLASS_DIR: changes when one of its headers does

    @property
    def versions(self) -> dict[str, str]:
        """Give the versions that a finished kernel should carry."""
        return {"nvrtc": self.nvrtc, "cuda": self.cuda, "cccl": self.cccl, "cutlass": self.cutlass}

    def key(self) -> str:
        """Give a text that differs whenever the same source might compile to something else."""
        parts = [f"{part}={version}" for part, version in self.versions.items()]
        return " ".join([*parts, *([f"stamp={self.cutlass_stamp}"] if self.cutlass_stamp else [])])


def find_toolchain() -> Toolchain:
    """Find the installed parts, once per process and setting of QIMENG_CUTLASS_DIR.

    Raises:
        EnvironmentMissing: names what is not there; `missing` in its details lists it.
    """
    return _find(os.environ.get(CUTLASS_VARIABLE, ""))


@lru_cache(maxsize=4)
def _find(checkout: str) -> Toolchain:
    bindings = _wheel_version("cuda-bindings")
    major = bindings.split(".")[0]
    nvrtc = _wheel_version("nvidia-cuda-nvrtc" if major != "12" else "nvidia-cuda-nvrtc-cu12")
    cuda, programs = _cuda_folders(major)
    cutlass = _cutlass_include(checkout)
    parts = {
        "cuda-bindings": bindings,
        "NVRTC": nvrtc,
        "the CUDA headers": _first(cuda, "cuda_fp16.h"),
        "the CCCL headers": _first(cuda, "cuda/std/cstdint"),
        "the CUTLASS headers": cutlass,
    }
    missing = [name for name, found in parts.items() if not found]
    if missing or cutlass is None:
        raise EnvironmentMissing(
            f"cannot compile: {', '.join(missing)} not installed", hint=f"run: {INSTALL}", missing=missing
        )
    return Toolchain(
        nvrtc=nvrtc,
        cuda=_cuda_version(cuda),
        cccl=_cccl_version(cuda),
        cutlass=".".join(_macro([cutlass], "cutlass/version.h", f"CUTLASS_{p}") for p in _CUTLASS_PARTS),
        includes=(cutlass, *cuda),
        nvdisasm=_first(programs, "nvdisasm"),
        cuobjdump=_first(programs, "cuobjdump"),
        cutlass_stamp=_stamp(cutlass) if checkout else "",
    )


_CUTLASS_PARTS = ("MAJOR", "MINOR", "PATCH")


def _wheel_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _locations(package: str) -> list[Path]:
    """Give the folders of a top-level package without importing it."""
    spec = find_spec(package)
    return [Path(place) for place in (spec.submodule_search_locations or [])] if spec else []


def _cuda_folders(major: str) -> tuple[list[Path], list[Path]]:
    """Give the folders of headers, in search order, and of programs."""
    if major == "12":
        headers = [
            "cuda_runtime/include",
            "cuda_nvrtc/include",
            "cuda_cccl/include",
            "cuda_cccl/include/cccl",
        ]
        # the 12 series has no wheels of these programs; those of the 13 series read its cubins
        programs = ["cuda_nvdisasm/bin", "cuda_cuobjdump/bin", "cuda_nvcc/bin", "cu13/bin"]
    else:
        headers = ["cu13/include", "cu13/include/cccl"]
        programs = ["cu13/bin"]
    roots = _locations("nvidia")
    found = [[root / path for path in paths for root in roots] for paths in (headers, programs)]
    return [p for p in found[0] if p.is_dir()], [p for p in found[1] if p.is_dir()]


def _cutlass_include(checkout: str) -> Path | None:
    if not checkout:
        places = [place / "source" / "include" for place in _locations("cutlass_library")]
        return next((p for p in places if (p / "cutlass/version.h").is_file()), None)
    root = Path(checkout).expanduser()
    for include in (root / "include", root):
        if (include / "cutlass" / "version.h").is_file():
            return include.resolve()
    raise EnvironmentMissing(
        f"{CUTLASS_VARIABLE} is {checkout!r}, which holds no cutlass/version.h",
        hint=f"name a CUTLASS checkout or its include folder, or unset {CUTLASS_VARIABLE}",
        missing=["the CUTLASS headers"],
    )


def _first(folders: Iterable[Path], name: str) -> Path | None:
    return next((folder / name for folder in folders if (folder / name).exists()), None)


def _macro(folders: Iterable[Path], header: str, macro: str) -> str:
    """Read the number that a header defines; "0" where it does not."""
    path = _first(folders, header)
    text = path.read_text(encoding="utf-8", errors="replace") if path else ""
    found = re.search(rf"^\s*#\s*define\s+{macro}\s+(\d+)", text, re.MULTILINE)
    return found[1] if found else "0"


def _cuda_version(folders: Iterable[Path]) -> str:
    number = int(_macro(folders, "cuda.h", "CUDA_VERSION"))  # 13020
    return f"{number // 1000}.{number % 1000 // 10}"


def _cccl_version(folders: Iterable[Path]) -> str:
    number = int(_macro(folders, "cuda/std/__cccl/version.h", "CCCL_VERSION"))  # 3002000
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _stamp(include: Path) -> str:
    """Digest the names, sizes and times of a checkout's headers: editing one must not hit an old cubin."""
    digest = hashlib.sha256()
    for path in sorted(p for folder in ("cute", "cutlass") for p in (include / folder).rglob("*.h*")):
        status = path.stat()
        digest.update(f"{path.relative_to(include)} {status.st_size} {status.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
