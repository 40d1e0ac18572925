"""The cache of cubins: what is found, what is refused, what damage does."""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from qimeng_attention.build import Cache, CacheEntry, cache_key

ENTRY = CacheEntry("// source\n", bytes(range(256)) * 8, {"seconds": 1.25, "log": "é\n", "versions": {"nvrtc": "13"}})
INPUTS = {"name": "k", "prelude": {"a.cuh": "x"}, "arch": "sm_80", "options": ("-O",), "toolchain": "nvrtc=1"}
KEY = cache_key("source", **INPUTS)  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def cache(root: Path) -> Cache:
    return Cache.open(root)


def never() -> CacheEntry:
    raise AssertionError("built although it was there")


def test_the_key_is_a_digest_that_every_input_changes() -> None:
    changed = [
        cache_key("source ", **INPUTS),  # type: ignore[arg-type]
        *(
            cache_key("source", **{**INPUTS, **change})  # type: ignore[arg-type]
            for change in (
                {"name": "j"},
                {"prelude": {"a.cuh": "y"}},
                {"prelude": {"b.cuh": "x"}},
                {"arch": "sm_90a"},
                {"options": ("-O", "-lineinfo")},
                {"toolchain": "nvrtc=2"},
            )
        ),
    ]

    assert len(KEY) == 64
    assert len({KEY, *changed}) == 1 + len(changed)


def test_what_is_put_is_found_by_another_object(cache: Cache, root: Path) -> None:
    assert cache.get(KEY) is None
    assert cache.put(KEY, ENTRY)

    assert Cache.open(root).get(KEY) == ENTRY


def test_an_entry_is_a_private_folder_of_three_files(cache: Cache, root: Path) -> None:
    cache.put(KEY, ENTRY)

    folder = root / "entries" / KEY
    assert sorted(path.name for path in folder.iterdir()) == ["entry.json", "kernel.cu", "kernel.cubin"]
    assert json.loads((folder / "entry.json").read_text())["facts"] == ENTRY.facts
    assert [stat.S_IMODE(path.stat().st_mode) for path in (root, folder)] == [0o700, 0o700]
    assert list((root / "staging").iterdir()) == []


def test_a_second_put_leaves_the_first(cache: Cache) -> None:
    cache.put(KEY, ENTRY)

    assert cache.put(KEY, CacheEntry("other", b"other"))
    assert cache.get(KEY) == ENTRY


def test_get_or_build_builds_once(cache: Cache) -> None:
    assert cache.get_or_build(KEY, lambda: ENTRY) == (ENTRY, False)
    assert cache.get_or_build(KEY, never) == (ENTRY, True)

    stats = cache.stats()
    assert (stats.entries, stats.hits, stats.misses, stats.damaged, stats.note) == (1, 1, 1, 0, None)
    assert stats.size_bytes > len(ENTRY.cubin)


def test_an_error_of_the_build_is_passed_on_and_leaves_no_lock(cache: Cache) -> None:
    with pytest.raises(ZeroDivisionError):
        cache.get_or_build(KEY, lambda: CacheEntry("", bytes(1 // 0)))

    assert cache.get_or_build(KEY, lambda: ENTRY) == (ENTRY, False)


def test_threads_that_want_one_key_build_it_once(root: Path) -> None:
    built = []

    def build() -> CacheEntry:
        built.append(1)
        time.sleep(0.05)
        return ENTRY

    threads = [threading.Thread(target=lambda: Cache.open(root).get_or_build(KEY, build)) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert built == [1]


def test_clear_removes_entries_and_leftovers(cache: Cache, root: Path) -> None:
    cache.put(KEY, ENTRY)
    (root / "staging" / "left").mkdir()

    assert cache.clear() == 1
    assert cache.get(KEY) is None
    assert cache.stats().entries == 0
    assert not (root / "staging").exists()


def test_a_key_that_is_no_digest_is_our_mistake(cache: Cache) -> None:
    with pytest.raises(ValueError, match="sha256"):
        cache.get("../../etc")


# ---------------------------------------------------------------------------------------------------- damage


def test_300_flipped_bits_are_all_noticed(cache: Cache, root: Path) -> None:
    rng = random.Random(20)
    cache.put(KEY, ENTRY)
    files = sorted((root / "entries" / KEY).iterdir())
    noticed = 0

    for _ in range(300):
        file = rng.choice(files)
        whole = file.read_bytes()
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        file.write_bytes(flipped)
        noticed += cache.get(KEY) is None
        assert cache.put(KEY, ENTRY)

    assert noticed == 300
    assert cache.stats().damaged == 300


def test_every_byte_of_the_manifest_counts(cache: Cache, root: Path) -> None:
    cache.put(KEY, ENTRY)
    file = root / "entries" / KEY / "entry.json"
    whole = file.read_bytes()

    for place in range(len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        file.write_bytes(flipped)
        assert cache.get(KEY) is None, place
        cache.put(KEY, ENTRY)


@pytest.mark.parametrize("name", ["kernel.cu", "kernel.cubin", "entry.json"])
def test_a_file_that_is_missing_or_cut_short_is_damage(cache: Cache, root: Path, name: str) -> None:
    for spoil in (Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1])):
        cache.put(KEY, ENTRY)
        spoil(root / "entries" / KEY / name)

        assert cache.get_or_build(KEY, lambda: ENTRY) == (ENTRY, False)

    assert cache.stats().damaged == 2
    assert len(list((root / "damaged").iterdir())) == 2


def test_an_entry_under_another_key_is_damage(cache: Cache, root: Path) -> None:
    cache.put(KEY, ENTRY)
    other = cache_key("other", **INPUTS)  # type: ignore[arg-type]
    (root / "entries" / KEY).rename(root / "entries" / other)

    assert cache.get(other) is None
    assert cache.stats().damaged == 1


# ------------------------------------------------------------------------------------ folders not to be used


def assert_works_without(cache: Cache, reason: str) -> None:
    assert cache.note is not None
    assert reason in cache.note
    assert "\n" not in cache.note
    assert cache.get_or_build(KEY, lambda: ENTRY) == (ENTRY, False)
    assert cache.get_or_build(KEY, lambda: ENTRY) == (ENTRY, False)
    assert not cache.put(KEY, ENTRY)
    assert cache.clear() == 0
    assert cache.stats().entries == 0


def test_a_symbolic_link_is_not_used(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")

    assert_works_without(Cache.open(tmp_path / "link"), "is a symbolic link")
    assert list((tmp_path / "real").iterdir()) == []


def test_a_folder_that_others_can_write_is_not_used(root: Path) -> None:
    root.mkdir()
    root.chmod(0o777)

    assert_works_without(Cache.open(root), "can be written by others")


def test_a_folder_of_another_user_is_not_used(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: root.stat().st_uid + 1)

    assert_works_without(Cache.open(root), "belongs to another user")


def test_a_folder_that_cannot_be_made_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert_works_without(Cache.open(tmp_path / "file" / "cache"), "cannot be made")


def test_a_disabled_cache_keeps_nothing_and_says_nothing() -> None:
    cache = Cache.disabled()

    assert cache.note is None
    assert cache.get_or_build(KEY, lambda: ENTRY) == (ENTRY, False)
    assert not cache.put(KEY, ENTRY)


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIMENG_CACHE_DIR", str(tmp_path / "named"))

    assert Cache.open().root == tmp_path / "named"


READ_ONLY = """
import os, sys
from pathlib import Path
from qimeng_attention.build import Cache, CacheEntry
os.chdir(sys.argv[1])
root, there, absent = Path("cache"), sys.argv[2], sys.argv[3]
if os.geteuid() == 0:
    os.setegid(65534), os.seteuid(65534)
cache = Cache.open(root)
entry = CacheEntry("new", b"new")
print(cache.note, cache.get(there) is not None, cache.get_or_build(absent, lambda: entry) == (entry, False))
print(cache.note)
"""


def test_a_read_only_folder_is_read_and_nothing_fails(cache: Cache, root: Path) -> None:
    cache.put(KEY, ENTRY)
    absent = cache_key("absent", **INPUTS)  # type: ignore[arg-type]
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    if os.geteuid() == 0:  # root may write anywhere: hand the folder to "nobody", who then looks at it
        root.parent.chmod(0o755)
        for path in [root, *root.rglob("*")]:
            os.chown(path, 65534, 65534)
    for folder in folders:
        folder.chmod(0o500)

    arguments = [sys.executable, "-c", READ_ONLY, str(root.parent), KEY, absent]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)

    for folder in folders:
        folder.chmod(0o700)
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "None True True",
        "not kept: the cache at cache cannot be written (Permission denied)",
    ]
