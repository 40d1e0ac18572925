"""Finding the parts: what is installed, what a checkout changes, what is missing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from qimeng_attention.build import Toolchain, find_toolchain
from qimeng_attention.build import toolchain as module
from qimeng_attention.errors import EnvironmentMissing


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay out a CUTLASS checkout of version 9.8.7 with two headers."""
    include = tmp_path / "include"
    for folder in ("cute", "cutlass"):
        (include / folder).mkdir(parents=True)
    version = "#define CUTLASS_MAJOR 9\n#define CUTLASS_MINOR 8\n#define CUTLASS_PATCH 7 \n"
    (include / "cutlass" / "version.h").write_text(version)
    (include / "cute" / "tensor.hpp").write_text("#pragma once\n")
    monkeypatch.setenv("QIMENG_CUTLASS_DIR", str(tmp_path))
    module._find.cache_clear()
    return tmp_path


def some_toolchain(**changes: str) -> Toolchain:
    versions = {"nvrtc": "13.2.86", "cuda": "13.2", "cccl": "3.2.0", "cutlass": "4.2.0", **changes}
    return Toolchain(includes=(Path("/somewhere"),), nvdisasm=None, cuobjdump=None, **versions)


@pytest.mark.parametrize("part", ["nvrtc", "cuda", "cccl", "cutlass", "cutlass_stamp"])
def test_the_key_changes_with_every_part(part: str) -> None:
    assert some_toolchain().key() != some_toolchain(**{part: "1.2.3"}).key()


def test_the_key_names_no_folder() -> None:
    assert "/somewhere" not in some_toolchain().key()


@pytest.mark.cuda
def test_the_installed_parts_are_found_with_their_versions(toolchain: Toolchain) -> None:
    assert all(part[0].isdigit() and "." in part for part in toolchain.versions.values())
    assert not any(version.startswith("0.0") for version in toolchain.versions.values())
    assert (toolchain.includes[0] / "cute" / "tensor.hpp").is_file()
    assert any((folder / "cuda_fp16.h").is_file() for folder in toolchain.includes[1:])


@pytest.mark.cuda
@pytest.mark.parametrize("inside", ["", "include"])
def test_a_checkout_named_by_the_environment_is_taken(
    toolchain: Toolchain, checkout: Path, inside: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("QIMENG_CUTLASS_DIR", str(checkout / inside))

    found = find_toolchain()

    assert found.cutlass == "9.8.7"
    assert found.includes[0] == (checkout / "include").resolve()
    assert found.key() != toolchain.key()


@pytest.mark.cuda
def test_editing_a_header_of_a_checkout_changes_the_key(toolchain: Toolchain, checkout: Path) -> None:
    before = find_toolchain().key()
    (checkout / "include" / "cute" / "tensor.hpp").write_text("#pragma once\n// edited\n")
    module._find.cache_clear()

    assert find_toolchain().key() != before


def test_a_checkout_without_cutlass_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIMENG_CUTLASS_DIR", str(tmp_path))

    with pytest.raises(EnvironmentMissing, match="holds no cutlass") as caught:
        find_toolchain()

    assert "unset QIMENG_CUTLASS_DIR" in caught.value.hint


def test_missing_parts_are_named_in_one_line_with_the_command_that_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("QIMENG_CUTLASS_DIR", raising=False)
    monkeypatch.setattr(module, "_wheel_version", lambda name: "")
    monkeypatch.setattr(module, "_locations", lambda package: [])
    module._find.cache_clear()

    with pytest.raises(EnvironmentMissing) as caught:
        find_toolchain()

    assert "\n" not in caught.value.message
    assert "NVRTC" in caught.value.message
    assert "CUTLASS" in caught.value.message
    assert caught.value.hint == "run: pip install 'qimeng-attention[build]'"
    assert len(caught.value.details["missing"]) == 5


def test_the_layout_of_the_12_series_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("cuda_runtime/include", "cuda_cccl/include", "cuda_nvdisasm/bin", "cu13/include"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(module, "_locations", lambda package: [tmp_path])

    headers, programs = module._cuda_folders("12")

    assert headers == [tmp_path / "cuda_runtime/include", tmp_path / "cuda_cccl/include"]
    assert programs == [tmp_path / "cuda_nvdisasm/bin"]


def test_importing_the_package_and_finding_the_parts_loads_no_cuda_module() -> None:
    program = (
        "import sys, contextlib\n"
        "before = set(sys.modules)\n"
        "from qimeng_attention import build\n"
        "with contextlib.suppress(Exception): build.find_toolchain()\n"
        "heavy = {'cuda', 'torch', 'cutlass_library', 'numpy'}\n"
        "print([m for m in set(sys.modules) - before if m.split('.')[0] in heavy])\n"
    )

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
