from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from qimeng_attention.errors import BundleError, EnvironmentMissing
from qimeng_attention.runtime import GridAxis, Manifest, Tensor, read_folder
from qimeng_attention.runtime.manifest import LEVELS, REQUIRED
from qimeng_attention.store import bundle_name, write_bundle
from qimeng_attention.store import bundles as bundles_module

FILES = {name: name.encode() * 7 for name in (*REQUIRED, "sm80.cuh")}
MANIFEST = Manifest(
    kernel="copy",
    target="A100",
    arch="sm_80",
    built_arch="sm_90",
    threads=32,
    shared_bytes=0,
    grid=(GridAxis("x", 0, "N"),),
    tensors=(Tensor("Y", "f32", ("N",), "output"),),
    sizes=("N",),
    scalars=(),
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_written_can_be_read(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "kernels", FILES, MANIFEST)

    contents = read_folder(path)
    assert path == tmp_path / "kernels" / "copy.A100"
    assert dict(contents.files) == FILES
    assert contents.manifest.files == {n: hashlib.sha256(c).hexdigest() for n, c in FILES.items()}
    assert replace(contents.manifest, files={}) == MANIFEST
    assert names(tmp_path / "kernels") == ["copy.A100"]


def test_a_bundle_that_is_there_stays(tmp_path: Path) -> None:
    path = write_bundle(tmp_path, FILES, MANIFEST)

    with pytest.raises(BundleError, match=r"is there already\n.*overwrite=True"):
        write_bundle(tmp_path, {**FILES, "kernel.cu": b"other"}, MANIFEST)

    assert read_folder(path).files["kernel.cu"] == FILES["kernel.cu"]
    assert names(tmp_path) == ["copy.A100"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_bundle_is_replaced_if_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool) -> None:
    if not exchange:
        monkeypatch.setattr(bundles_module, "_RENAME_EXCHANGE", 1 << 20)  # a flag no file system has
    write_bundle(tmp_path, FILES, MANIFEST)

    path = write_bundle(tmp_path, {**FILES, "verdict.json": b"{}"}, MANIFEST, overwrite=True)

    assert read_folder(path).files["verdict.json"] == b"{}"
    assert names(tmp_path) == ["copy.A100"]


def test_overwrite_makes_a_bundle_that_was_not_there(tmp_path: Path) -> None:
    assert read_folder(write_bundle(tmp_path, FILES, MANIFEST, overwrite=True)).files


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_what_is_no_bundle_is_not_replaced(tmp_path: Path, kind: str) -> None:
    target, elsewhere = tmp_path / "copy.A100", tmp_path / "elsewhere"
    if kind == "folder":
        target.mkdir()
        (target / "thesis.tex").write_bytes(b"years of work")
    elif kind == "file":
        target.write_bytes(b"years of work")
    else:
        write_bundle(elsewhere, FILES, MANIFEST)
        target.symlink_to(elsewhere / "copy.A100")

    with pytest.raises(BundleError, match="no bundle and stays"):
        write_bundle(tmp_path, FILES, MANIFEST, overwrite=True)

    assert target.is_symlink() or list(tmp_path.rglob("*")) != []
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", REQUIRED)
def test_an_incomplete_bundle_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match=rf"without {name} is incomplete"):
        write_bundle(tmp_path, {n: content for n, content in FILES.items() if n != name}, MANIFEST)

    assert names(tmp_path) == []


def test_a_kernel_from_no_tl_has_none_of_its_levels(tmp_path: Path) -> None:
    written = write_bundle(tmp_path, {n: c for n, c in FILES.items() if n not in LEVELS}, MANIFEST)

    assert not set(LEVELS) & set(names(written))
    assert not set(LEVELS) & set(read_folder(written).files)


@pytest.mark.parametrize("name", ["../x.cuh", "/tmp/x.cuh", "a/b.cuh", "manifest.json", "notes.md", "", "..", ".cuh"])
def test_a_file_of_another_name_is_not_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="is no file of a bundle"):
        write_bundle(tmp_path / "kernels", {**FILES, name: b""}, MANIFEST)

    assert names(tmp_path) == []


def test_a_manifest_that_makes_no_sense_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="threads"):
        write_bundle(tmp_path / "kernels", FILES, replace(MANIFEST, threads=0))

    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("kernel", "target", "expected"),
    [
        ("gqa_causal_d128_bf16", "A100", "gqa_causal_d128_bf16.A100"),
        ("a", "RTX 8000", "a.RTX_8000"),
        ("a", "../../etc", "a._etc"),
        ("a", "", "a._"),
        ("../b", "..", "_b._"),
        ("k" * 128, "t" * 500, f"{'k' * 96}.{'t' * 96}"),
    ],
)
def test_names_of_folders_are_plain(kernel: str, target: str, expected: str) -> None:
    assert bundle_name(replace(MANIFEST, kernel=kernel, target=target)) == expected


def test_the_longest_name_can_be_written(tmp_path: Path) -> None:
    manifest = replace(MANIFEST, kernel="k" * 128, target="t" * 500)

    assert read_folder(write_bundle(tmp_path, FILES, manifest)).manifest.kernel == "k" * 128


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(EnvironmentMissing, match="cannot be written"):
        write_bundle(tmp_path / "file" / "kernels", FILES, MANIFEST)


WRITER = """
import sys
from pathlib import Path
from qimeng_attention.runtime import read_folder
from qimeng_attention.store import write_bundle
contents = read_folder(sys.argv[1])
print("ready", flush=True)
number = 0
while True:
    number += 1
    files = {**contents.files, "kernel.cubin": bytes([number % 251]) * 2_000_000}
    write_bundle(sys.argv[2], files, contents.manifest, overwrite=True)
"""


@pytest.mark.parametrize("there", [False, True])
def test_a_killed_writer_leaves_a_whole_bundle_or_none(tmp_path: Path, there: bool) -> None:
    seed, chance = write_bundle(tmp_path / "seed", FILES, MANIFEST), random.Random(7)

    for round_number in range(6):
        target = tmp_path / f"kernels{round_number}"
        target.mkdir()
        if there:
            write_bundle(target, FILES, MANIFEST)
        kill_a_writer(seed, target, after_s=chance.uniform(0.0, 0.1))

        for path in visible(target):
            read_folder(path)
        write_bundle(target, FILES, MANIFEST, overwrite=True)
        assert visible(target) == [target / "copy.A100"]


def kill_a_writer(seed: Path, target: Path, *, after_s: float) -> None:
    command = [sys.executable, "-c", WRITER, str(seed), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(after_s)
        process.send_signal(signal.SIGKILL)


def visible(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


READER = """
import sys, time
from pathlib import Path
end = time.monotonic() + 2.0
listed = 0
while time.monotonic() < end:
    listed += (Path(sys.argv[1]) / "manifest.json").is_file()
    assert Path(sys.argv[1]).is_dir()
print(listed)
"""


def test_readers_always_find_a_bundle_while_it_is_replaced(tmp_path: Path) -> None:
    path, other = write_bundle(tmp_path, FILES, MANIFEST), tmp_path / "other"
    other.mkdir()
    if not bundles_module.swap(path, other):
        pytest.skip("this file system cannot swap two folders")
    bundles_module.swap(path, other)
    reader = subprocess.Popen([sys.executable, "-c", READER, str(path)], stdout=subprocess.PIPE, text=True)

    while reader.poll() is None:
        write_bundle(tmp_path, FILES, MANIFEST, overwrite=True)

    assert reader.returncode == 0
    assert reader.communicate()[0].strip() != "0"


def test_two_writers_of_one_name_leave_one_whole_bundle(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from qimeng_attention.runtime import read_folder\n"
        "from qimeng_attention.store import write_bundle\n"
        "from qimeng_attention.errors import BundleError\n"
        "contents = read_folder(sys.argv[1]); sys.stdin.read()\n"
        "try: write_bundle(sys.argv[2], contents.files, contents.manifest)\n"
        "except BundleError: sys.exit(7)\n"
    )
    seed = write_bundle(tmp_path / "seed", FILES, MANIFEST)
    arguments = [sys.executable, "-c", code, str(seed), str(tmp_path / "kernels")]
    writers = [subprocess.Popen(arguments, stdin=subprocess.PIPE) for _ in range(3)]

    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    codes = sorted(writer.wait() for writer in writers)

    assert codes == [0, 7, 7]
    assert read_folder(tmp_path / "kernels" / "copy.A100").files
    assert names(tmp_path / "kernels") == ["copy.A100"]


def test_every_file_is_synced_before_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    write_bundle(tmp_path, FILES, MANIFEST)

    assert {Path(path).name for path in synced[:-2]} == {*FILES, "manifest.json"}
    assert synced[-2].endswith(".partial")
    assert synced[-1] == str(tmp_path)
