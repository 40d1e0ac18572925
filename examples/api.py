"""The Python API without a GPU: from a description to a bundle, with a look at what was made.

    python examples/api.py out/small_window

Builds for an A100, judges on the CPU with a window of 64 keys, and prints the bundle's summary.
"""

from __future__ import annotations

import sys
from pathlib import Path

from qimeng_attention import AttentionSpec, Bundle, generate


def make(folder: Path, *, judge: bool = True) -> Bundle:
    """Make the kernel of a small operator, and give its bundle."""
    spec = AttentionSpec.make(name="small_window", Hq=4, Hk=2, Dqk=64, mask="window:63")
    for line in spec.describe():
        print(line)
    return generate(spec, target="A100", out=folder, judge=judge, overwrite=True)


if __name__ == "__main__":
    bundle = make(Path(sys.argv[1] if len(sys.argv) > 1 else "out/small_window"))
    print(bundle.show())
    print(f"\nthe bundle is in {bundle.path}")
