from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from qimeng_attention.errors import BundleError
from qimeng_attention.runtime import Manifest, load, read_folder


def test_a_whole_bundle_is_read(folder: Path, manifest: Manifest) -> None:
    contents = read_folder(folder)

    assert contents.manifest == manifest
    assert contents.files["kernel.cubin"] == b"\x7fELF kernel"
    assert contents.path == folder


def test_every_flipped_bit_of_every_file_is_noticed(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        for position in range(0, len(content) * 8, 1 if len(content) < 40 else 97):
            changed = bytearray(content)
            changed[position // 8] ^= 1 << position % 8
            file.write_bytes(changed)
            with pytest.raises(BundleError, match=file.name):
                read_folder(folder)
        file.write_bytes(content)

    read_folder(folder)


def test_a_missing_file_is_named(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        content = file.read_bytes()
        file.unlink()
        with pytest.raises(BundleError, match=rf"{file.name} is missing"):
            read_folder(folder)
        file.write_bytes(content)


def test_a_bundle_without_verdict_is_whole(folder: Path, manifest: Manifest, rewrite: Callable[..., None]) -> None:
    files = {name: content for name, content in read_folder(folder).files.items() if name != "verdict.json"}
    shutil.rmtree(folder)
    rewrite(folder, manifest, files)

    assert "verdict.json" not in read_folder(folder).files


@pytest.mark.parametrize("name", ["note.txt", ".hidden", "other.cuh", "__pycache__"])
def test_an_extra_file_is_named(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"")

    with pytest.raises(BundleError, match=rf"{name} is not in the manifest"):
        read_folder(folder)


@pytest.mark.parametrize("name", ["kernel.cubin", "manifest.json"])
def test_a_symbolic_link_is_refused_even_to_the_same_bytes(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")

    with pytest.raises(BundleError, match=rf"{name} is a symbolic link"):
        read_folder(folder)


def test_a_folder_in_the_place_of_a_file_is_refused(folder: Path) -> None:
    (folder / "kernel.cu").unlink()
    (folder / "kernel.cu").mkdir()

    with pytest.raises(BundleError, match=r"kernel\.cu"):
        read_folder(folder)


def test_a_pipe_in_the_place_of_a_file_does_not_block(folder: Path) -> None:
    (folder / "kernel.cu").unlink()
    os.mkfifo(folder / "kernel.cu")

    with pytest.raises(BundleError, match="no plain file"):
        read_folder(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(folder: Path) -> None:
    (folder / "kernel.cu").chmod(0)

    with pytest.raises(BundleError, match=r"kernel\.cu cannot be read"):
        read_folder(folder)


def test_no_folder_at_all_is_a_bundle_error(tmp_path: Path, folder: Path) -> None:
    for path in (tmp_path / "nothing", folder / "kernel.cu", tmp_path, "a\x00b"):
        with pytest.raises(BundleError):
            load(path)


def test_a_link_to_the_whole_bundle_is_followed(folder: Path, tmp_path: Path, manifest: Manifest) -> None:
    (tmp_path / "latest").symlink_to(folder)

    assert read_folder(tmp_path / "latest").manifest == manifest
