"""The files of a bundle, read once and checked: every digest, no file more or less, nothing but plain files.

What is checked is what is used: the bytes stay in memory and no file is opened twice.

Not here: what the manifest says (manifest.py), writing a bundle (store/).
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qimeng_attention.errors import BundleError
from qimeng_attention.runtime.manifest import MANIFEST, Manifest, required
from qimeng_attention.runtime.manifest_json import from_json

_RESTORE = "restore the folder from where it was copied, or generate the bundle again"
_MOST_BYTES = 1 << 28  # of one file: far above any kernel, far below a machine's memory


@dataclass(frozen=True, slots=True)
class Contents:
    """A bundle's manifest, and its other files by name."""

    path: Path
    manifest: Manifest
    files: MappingProxyType[str, bytes]


def read_folder(path: str | os.PathLike[str]) -> Contents:
    """Read a bundle.

    Raises:
        BundleError: no bundle, a file that is missing, changed, too many or no plain file, or another format.
    """
    folder = Path(path).absolute()
    present = _listing(folder)
    if MANIFEST not in present:
        raise _damaged(folder, MANIFEST, "is missing")
    manifest = from_json(_read(folder, MANIFEST), file=str(folder / MANIFEST))
    expected = {MANIFEST, *manifest.files}
    for name in (*required(manifest.files), *manifest.files):
        if name not in present or name not in expected:
            raise _damaged(folder, name, "is missing")
    if extra := sorted(present - expected):
        raise _damaged(folder, extra[0], "is not in the manifest", hint="move it out of the bundle's folder")
    files = {name: _read(folder, name) for name in manifest.files}
    for name, content in files.items():
        if hashlib.sha256(content).hexdigest() != manifest.files[name]:
            raise _damaged(folder, name, "has changed: its digest is not the manifest's")
    return Contents(folder, manifest, MappingProxyType(files))


def _listing(folder: Path) -> set[str]:
    try:
        return {entry.name for entry in folder.iterdir()}
    except NotADirectoryError:
        raise BundleError(f"{folder} is a file", hint="name the bundle's folder", file=str(folder)) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise BundleError(
            f"{folder}: no bundle ({reason})", hint="name the bundle's folder", file=str(folder)
        ) from None


def _read(folder: Path, name: str) -> bytes:
    try:
        with open(folder / name, "rb", opener=_open) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise _damaged(folder, name, "is no plain file")
            if status.st_size > _MOST_BYTES:
                raise _damaged(folder, name, f"is larger than {_MOST_BYTES >> 20} MiB")
            return file.read()
    except OSError as error:
        linked = (folder / name).is_symlink()
        problem = "is a symbolic link" if linked else f"cannot be read ({error.strerror})"
        raise _damaged(folder, name, problem) from None


def _open(path: str, flags: int) -> int:
    # SAFETY: a link is refused by the open itself, and a pipe does not block it.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def _damaged(folder: Path, name: str, problem: str, **more: Any) -> BundleError:
    return BundleError(f"{folder / name} {problem}", **{"hint": _RESTORE, "file": name, **more})
