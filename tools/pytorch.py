"""Install PyTorch and transformers beside the package, for the tests that need them.

    python tools/pytorch.py             # what this machine can use: with an NVIDIA GPU pip's own, else a CPU build
    python tools/pytorch.py none        # nothing: those tests are skipped
    python tools/pytorch.py required    # fail where there is no CPU build, instead of going on without

A CPU build comes from PyTorch's index where that can be reached, else from whatever pip has been told of. The builds
that PyPI offers for Linux bring 3 GB of CUDA: they are not taken where no GPU could use them.

Not here: what the tests need (the extra `test` in pyproject.toml).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from importlib import metadata

VERSION = "2.13.0"
INDEX = "https://download.pytorch.org/whl/cpu"
QUICK = ("--timeout", "5", "--retries", "0")  # an index that cannot be reached costs seconds
WAYS = ("cpu", "none", "required")


def main(way: str = "cpu") -> int:
    if way not in WAYS:
        print(f"PYTORCH is one of {', '.join(WAYS)}, not {way}", file=sys.stderr)
        return 2
    if way == "none":
        print("PyTorch is left out: the tests that need it are skipped")
        return 0
    if installed("torch") and installed("transformers"):
        return 0
    if not (installed("torch") or shutil.which("nvidia-smi") or cpu_build()):
        print(f"no CPU build of PyTorch {VERSION} was found: the tests that need it are skipped", file=sys.stderr)
        return 1 if way == "required" else 0
    return 0 if pip("-e", ".[test]") else 1


def installed(name: str) -> bool:
    """Tell whether there is some version of a package."""
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def cpu_build() -> bool:
    """Install a CPU build; its index is asked for PyTorch alone, everything else comes as ever."""
    wanted = f"torch=={VERSION}+cpu" if sys.platform == "linux" else f"torch=={VERSION}"
    return pip("--no-deps", *QUICK, "--extra-index-url", INDEX, wanted)


def pip(*words: str) -> bool:
    """Run pip; tell whether it could do it."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *words]
    return subprocess.run(command, check=False).returncode == 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
