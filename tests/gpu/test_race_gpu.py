"""A race on a real GPU: QIMENG_TEST_BUNDLES names a folder of bundles, as in test_runtime_gpu.py."""

from __future__ import annotations

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from qimeng_attention.bench.race import BEST, CALL, CANDIDATE, read_race, run_race
from qimeng_attention.runtime import load
from qimeng_attention.runtime.launcher import runs_on

VARIABLE = "QIMENG_TEST_BUNDLES"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


def folders() -> list[Path]:
    root = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
    return sorted(path.parent for path in root.rglob("manifest.json"))[:12] if root else []


@pytest.mark.parametrize("folder", folders() or [None], ids=lambda path: path.name if path else "none")
def test_a_kernel_gains_nothing_on_itself(folder: Path | None, torch: Any, tmp_path: Path) -> None:
    if folder is None:
        pytest.skip(f"needs bundles: set {VARIABLE} to a folder of them")
    found = load(folder)
    spec = json.loads(found.files["spec.json"])
    if spec is None or spec["varlen"] or spec["seqused_k"]:
        pytest.skip(f"{found.manifest.kernel} has no one length to time it at")
    if not runs_on(found.manifest.built_arch, torch.cuda.get_device_capability()):
        pytest.skip(f"{found.manifest.kernel} is built for {found.manifest.built_arch}")
    for name in (BEST, CANDIDATE):
        shutil.copytree(folder, tmp_path / name)
    (tmp_path / CALL).write_text('{"B": 2, "S": 2048}')
    began = time.perf_counter()
    race = run_race(tmp_path)

    assert race.error == ""
    assert race.verdict == "accepted"
    assert race.difference == 0.0
    assert race.gain is not None
    assert not race.gain.kept
    assert abs(race.gain.ratio - 1) < 0.02
    assert race.clock_mhz is None or 200 < race.clock_mhz < 4000
    assert read_race(tmp_path) == race
    assert time.perf_counter() - began < 120
