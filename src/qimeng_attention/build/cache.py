"""Cubins by content: a folder per kernel, named by the digest of everything that made it.

    ROOT/entries/<key>/    kernel.cu, kernel.cubin, entry.json: renamed into place, then never changed
    ROOT/locks/<key>       held (flock) while a key is built: once, by one process
    ROOT/staging/          entries that are being written
    ROOT/damaged/          entries moved aside because a digest was wrong

A lock ends with the process that holds it, so a killed one leaves nothing stale; lock files stay, since
removing one could give two processes the same key. ROOT is QIMENG_CACHE_DIR or the user's cache folder. Where
it cannot be used, everything works without it and `note` says why in one line.

Not here: compiling (nvrtc.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import platformdirs

CACHE_VARIABLE = "QIMENG_CACHE_DIR"
_FILES = ("kernel.cu", "kernel.cubin")
_MANIFEST = "entry.json"
_KEY = re.compile(r"[0-9a-f]{64}")
_FORM = 1  # of the entries; part of every key


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """One kernel: its source, its cubin, and plain facts (versions, seconds, the compiler's log)."""

    source: str
    cubin: bytes
    facts: Mapping[str, Any] = field(default_factory=dict)  # JSON values


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What is in the cache, and what this object did with it."""

    root: Path | None
    entries: int
    size_bytes: int
    hits: int
    misses: int
    damaged: int  # entries that this object found damaged
    note: str | None


def cache_key(
    source: str, *, name: str, prelude: Mapping[str, str], arch: str, options: Sequence[str], toolchain: str
) -> str:
    """Digest all that a cubin depends on: texts, architecture, options, versions of compiler and headers."""
    parts = [_FORM, name, source, dict(prelude), arch, list(options), toolchain]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


class _Damaged(Exception):
    """An entry whose bytes are not those that were written."""


class Cache:
    """A folder of cubins that any number of processes share; `root` is None where there is none to use."""

    def __init__(self, root: Path | None, note: str | None = None) -> None:
        self.root, self.note = root, note
        self._hits = self._misses = self._damaged = 0

    @classmethod
    def open(cls, root: Path | None = None) -> Cache:
        """Open the cache at `root`, at QIMENG_CACHE_DIR, or in the user's cache folder; never fails.

        A folder that is a symbolic link, belongs to somebody else or can be written by others is not used:
        what lies in it will run on the GPU.
        """
        chosen = root or Path(os.environ.get(CACHE_VARIABLE) or platformdirs.user_cache_path("qimeng-attention"))
        try:
            chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
            problem = _distrust(chosen)
        except OSError as error:
            problem = f"cannot be made ({error.strerror})"
        return cls(None, f"no cache: {chosen} {problem}") if problem else cls(chosen)

    @classmethod
    def disabled(cls) -> Cache:
        """Give a cache that keeps nothing."""
        return cls(None)

    def get(self, key: str) -> CacheEntry | None:
        """Find an entry, all digests checked; a damaged one is moved aside and counts as absent."""
        entry = self._find(key)
        if entry is None:
            self._misses += 1
        else:
            self._hits += 1
        return entry

    def put(self, key: str, entry: CacheEntry) -> bool:
        """Keep an entry; False, and a note, if the folder does not take it. An entry that is there stays."""
        if self.root is None:
            return False
        with self._lock(key):
            return self._find_locked(key) is not None or self._store(key, entry)

    def get_or_build(self, key: str, build: Callable[[], CacheEntry]) -> tuple[CacheEntry, bool]:
        """Find an entry or build and keep it; the second value says whether it was found.

        While one process builds a key, others that want it wait. What `build` raises is passed on.
        """
        if (entry := self.get(key)) is not None:
            return entry, True
        with self._lock(key):
            if (entry := self._find_locked(key)) is not None:
                return entry, True
            entry = build()
            self._store(key, entry)
        return entry, False

    def stats(self) -> CacheStats:
        """Count entries and bytes."""
        folders = self._entries()
        size = sum(_size(folder / name) for folder in folders for name in (*_FILES, _MANIFEST))
        return CacheStats(self.root, len(folders), size, self._hits, self._misses, self._damaged, self.note)

    def clear(self) -> int:
        """Remove all entries, and what killed processes left behind; give the number of entries removed."""
        removed = 0
        for folder in self._entries():
            with self._lock(folder.name):
                removed += self._move_away(folder, "staging")
        if self.root is not None:
            for leftover in ("staging", "damaged"):
                shutil.rmtree(self.root / leftover, ignore_errors=True)
        return removed

    def _entries(self) -> list[Path]:
        if self.root is None:
            return []
        with contextlib.suppress(OSError):
            return sorted(path for path in (self.root / "entries").iterdir() if _KEY.fullmatch(path.name))
        return []

    def _find(self, key: str) -> CacheEntry | None:
        folder = self._folder(key)
        if folder is None:
            return None
        with contextlib.suppress(_Damaged):
            return _read(folder, key)
        with self._lock(key):
            return self._find_locked(key)

    def _find_locked(self, key: str) -> CacheEntry | None:
        """Find an entry while no other process builds or mends it."""
        folder = self._folder(key)
        if folder is None:
            return None
        try:
            return _read(folder, key)
        except _Damaged:
            self._damaged += 1
            self._move_away(folder, "damaged")
            return None

    def _folder(self, key: str) -> Path | None:
        if not _KEY.fullmatch(key):
            raise ValueError(f"a key is a sha256 in hexadecimal, not {key!r}")
        return self.root / "entries" / key if self.root is not None else None

    def _move_away(self, folder: Path, place: str) -> bool:
        assert self.root is not None
        try:
            target = self.root / place
            target.mkdir(mode=0o700, exist_ok=True)
            folder.rename(target / f"{folder.name}.{uuid.uuid4().hex}")
        except OSError as error:
            self.note = f"the cache at {self.root} cannot be changed ({error.strerror})"
            return False
        return True

    def _store(self, key: str, entry: CacheEntry) -> bool:
        folder = self._folder(key)
        if self.root is None or folder is None:
            return False
        staged = self.root / "staging" / f"{key}.{uuid.uuid4().hex}"
        try:
            folder.parent.mkdir(mode=0o700, exist_ok=True)
            staged.mkdir(mode=0o700, parents=True)
            _write(staged, key, entry)
            staged.rename(folder)
            _sync(folder.parent)
        except OSError as error:
            shutil.rmtree(staged, ignore_errors=True)
            if folder.is_dir():  # another process was faster: where locks do not work, the winner's stays
                return True
            self.note = f"not kept: the cache at {self.root} cannot be written ({error.strerror})"
            return False
        return True

    @contextlib.contextmanager
    def _lock(self, key: str) -> Iterator[None]:
        """Hold a key; goes on without where the folder cannot be written or knows no locks."""
        descriptor = None
        if self.root is not None:
            with contextlib.suppress(OSError):
                (self.root / "locks").mkdir(mode=0o700, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
                descriptor = os.open(self.root / "locks" / key, flags, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if descriptor is not None:
                os.close(descriptor)  # ends the lock


def _distrust(root: Path) -> str | None:
    """Say what makes a folder unfit to run code from, None if nothing does."""
    status = root.lstat()
    if stat.S_ISLNK(status.st_mode):
        return "is a symbolic link; name the folder itself"
    if status.st_uid != os.geteuid():
        return "belongs to another user"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "can be written by others; run chmod 700 on it"
    return None


def _write(folder: Path, key: str, entry: CacheEntry) -> None:
    contents = dict(zip(_FILES, (entry.source.encode(), entry.cubin), strict=True))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
    contents[_MANIFEST] = _manifest({"key": key, "files": digests, "facts": dict(entry.facts)})
    for name, content in contents.items():
        descriptor = os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    _sync(folder)


def _manifest(content: Mapping[str, Any]) -> bytes:
    """Give the one form that a manifest has on disk, with the digest of its other fields among them."""
    fields = {name: value for name, value in content.items() if name != "digest"}
    digest = hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**fields, "digest": digest}, sort_keys=True, indent=1) + "\n").encode()


def _read(folder: Path, key: str) -> CacheEntry | None:
    """Read an entry; None if there is none, _Damaged if it is not what was written."""
    if not folder.exists():
        return None
    try:
        raw = (folder / _MANIFEST).read_bytes()
        manifest = json.loads(raw)
        contents = {name: (folder / name).read_bytes() for name in _FILES}
        digests = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        # The whole text is compared, not only the fields: a flipped bit in white space is damage too.
        if raw != _manifest(manifest) or manifest["key"] != key or manifest["files"] != digests:
            raise _Damaged
        return CacheEntry(contents["kernel.cu"].decode(), contents["kernel.cubin"], manifest["facts"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _Damaged from error


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
