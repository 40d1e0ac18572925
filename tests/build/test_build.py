"""From text to a finished kernel, with and without the cache."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qimeng_attention import targets
from qimeng_attention.build import Built, Cache, CompileError, Toolchain, build, prelude
from qimeng_attention.build import nvrtc as compiler
from qimeng_attention.errors import BuildError

A100 = targets.get("A100")


def built(source: str, cache: Cache, name: str = "tiny") -> Built:
    return build(source, name=name, arch="sm_80", threads=32, shared_bytes=1024, target=A100, cache=cache)


@pytest.mark.cuda
def test_a_kernel_is_compiled_once_and_then_found(
    toolchain: Toolchain, tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = built(tiny, Cache.open(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "_import_nvrtc", lambda: pytest.fail("compiled although it was there"))
    second = built(tiny, Cache.open(tmp_path / "cache"))

    assert (first.cached, second.cached) == (False, True)
    assert (first.cubin, first.log, first.report) == (second.cubin, second.log, second.report)
    assert second.seconds == first.seconds > 0
    assert second.versions == toolchain.versions
    assert second.report.occupancy is not None
    assert second.report.occupancy.blocks_per_sm > 1
    json.dumps(second.to_json())


@pytest.mark.cuda
def test_a_cache_that_cannot_be_used_is_a_note(toolchain: Toolchain, tiny: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    found = built(tiny, Cache.open(tmp_path / "file" / "cache"))

    assert not found.cached
    assert len(found.notes) == 1
    assert "cannot be made" in found.notes[0]


@pytest.mark.cuda
def test_a_refused_source_is_not_kept(toolchain: Toolchain, tiny: str, tmp_path: Path) -> None:
    cache = Cache.open(tmp_path / "cache")

    with pytest.raises(CompileError):
        built(tiny.replace("cp_async_fence()", "cp_async_fense()"), cache)

    assert cache.stats().entries == 0


@pytest.mark.cuda
def test_a_source_without_the_kernel_is_refused_by_name(toolchain: Toolchain) -> None:
    source = "__global__ void tiny(int* p) { *p = 1; }"

    with pytest.raises(BuildError, match=r"no kernel named tiny; it has _Z4tinyPi") as caught:
        built(source, Cache.disabled())

    assert 'extern "C" __global__ void tiny' in caught.value.hint


def test_the_packages_headers_are_found_as_texts() -> None:
    headers = prelude()

    assert all(name.endswith(".cuh") for name in headers)
    assert list(headers) == sorted(headers)
