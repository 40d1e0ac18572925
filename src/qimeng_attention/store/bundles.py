"""Writing a bundle: every file into a hidden folder, synced, and that folder renamed into place.

A bundle is there as a whole or not at all, whenever the process or the machine stops. What a killed process
leaves is a folder `.NAME.<number>.partial`, which nobody reads and anybody may remove.

Not here: what a bundle must hold, and reading it (runtime/).
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path

from qimeng_attention.errors import BundleError, EnvironmentMissing
from qimeng_attention.runtime.manifest import MANIFEST, Manifest, is_file_name, required
from qimeng_attention.runtime.manifest_json import to_json

_LONGEST_PART = 96  # of a folder's name: both parts and what a staged folder adds stay under 255
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


def bundle_name(manifest: Manifest) -> str:
    """Give the name of a bundle's folder, "gqa_causal_d128_bf16.A100"; nothing but letters, digits, `_-.`."""
    parts = (manifest.kernel, manifest.target)
    return ".".join(re.sub(r"[^A-Za-z0-9_-]+", "_", part)[:_LONGEST_PART] or "_" for part in parts)


def write_bundle(
    folder: str | os.PathLike[str],
    files: Mapping[str, bytes],
    manifest: Manifest,
    *,
    name: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a bundle and give its path, `folder / name`.

    Args:
        folder: where bundles are; made if it is not there.
        files: content by name, without the manifest.
        manifest: its `files` are filled in here.
        name: of the bundle's own folder; by default `bundle_name(manifest)`.
        overwrite: replace a bundle of that name.

    Raises:
        BundleError: a file too many or too few, a manifest that makes no sense, or a bundle that is there.
        EnvironmentMissing: the folder cannot be written.
    """
    _check_files(files)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    contents = {**files, MANIFEST: to_json(dataclasses.replace(manifest, files=digests))}
    target = Path(folder).absolute() / (name or bundle_name(manifest))
    staged = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        refuse_existing(target, overwrite)
        _write(staged, contents)
        _put(staged, target, overwrite)
        _sync(target.parent)
    except OSError as error:
        raise EnvironmentMissing(
            f"{target} cannot be written: {error.strerror}",
            hint="name a folder with room and the right to write",
        ) from error
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def _check_files(files: Mapping[str, bytes]) -> None:
    for name in required(files):
        if name not in files:
            raise BundleError(f"a bundle without {name} is incomplete", hint=f"pass {name}", file=name)
    for name in files:
        if not is_file_name(name):
            raise BundleError(f"{name!r} is no file of a bundle", hint="headers are named NAME.cuh", file=name)


def refuse_existing(target: Path, overwrite: bool) -> None:
    """Refuse to write where something is, unless it is a bundle that may be replaced.

    Raises:
        BundleError: something is there.
    """
    if not os.path.lexists(target):
        return
    if not overwrite:
        hint = "pass overwrite=True (--force on the command line), or another folder"
        raise BundleError(f"{target} is there already", hint=hint, file=str(target))
    if target.is_symlink() or not (target / MANIFEST).is_file():
        raise BundleError(f"{target} is no bundle and stays as it is", hint="move it away", file=str(target))


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, content in contents.items():
        with (folder / name).open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(folder)


def _put(staged: Path, target: Path, overwrite: bool) -> None:
    """Rename into place; what was there before is then at `staged`, or gone."""
    if overwrite and target.exists():
        _exchange(staged, target)
        return
    try:
        staged.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):  # another process was faster
            refuse_existing(target, overwrite=False)
        raise


def _exchange(staged: Path, target: Path) -> None:
    """Swap two folders in one step; where the file system cannot, in three."""
    if swap(staged, target):
        return
    aside = staged.with_suffix(".replaced")
    target.rename(aside)
    try:
        staged.rename(target)
    except OSError:
        aside.rename(target)
        raise
    aside.rename(staged)


def swap(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system or the file system cannot."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    paths = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    return rename is not None and rename(*paths, _RENAME_EXCHANGE) == 0


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
