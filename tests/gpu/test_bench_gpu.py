"""`qimeng bench` on a real GPU: QIMENG_TEST_BUNDLES names a folder of bundles, as in test_runtime_gpu.py."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from qimeng_attention.cli import app
from qimeng_attention.report import page_of
from qimeng_attention.runtime import load, read_folder
from qimeng_attention.runtime.launcher import runs_on

VARIABLE = "QIMENG_TEST_BUNDLES"
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]


def folders() -> list[Path]:
    root = Path(os.environ[VARIABLE]) if os.environ.get(VARIABLE) else None
    return sorted(path.parent for path in root.rglob("manifest.json")) if root else []


@pytest.fixture(params=folders() or [None], ids=lambda path: path.name if path else "none")
def bundle(request: pytest.FixtureRequest, torch: Any, tmp_path: Path) -> Path:
    """Give a copy of a bundle, which its times are written into."""
    if request.param is None:
        pytest.skip(f"needs bundles: set {VARIABLE} to a folder of them")
    found = load(request.param)
    if not found.manifest.call or json.loads(found.files["spec.json"]) is None:
        pytest.skip(f"{found.manifest.kernel} is no operator of q, k and v with a description")
    if not runs_on(found.manifest.built_arch, torch.cuda.get_device_capability()):
        pytest.skip(f"{found.manifest.kernel} is built for {found.manifest.built_arch}")
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_times_are_measured_kept_and_shown(bundle: Path) -> None:
    spec = json.loads(load(bundle).files["spec.json"])
    result = CliRunner().invoke(app, ["bench", str(bundle), "--B", "2", "--S", "1024", "--json"])

    if spec["varlen"] or spec["seqused_k"]:
        assert result.exit_code == 2
        assert "no one length to time it at" in result.output
        return
    assert result.exit_code == 0, result.output
    (row,) = json.loads(result.stdout)["rows"]
    assert 0 < row["ours_ms"] < 100
    assert row["ours_tflops"] > 0
    if "peer" in row:
        assert row["peer"].startswith("SDPA")
        assert 0.05 < row["ratio"] < 50
    if spec["score"] != "score" or spec["softcap"] is not None:
        assert "peer" not in row
    page = page_of(read_folder(bundle))
    assert page.speed[-1][0] == "measured on"
    assert f"{row['ours_ms']:g} ms" in page.speed[0][1]
