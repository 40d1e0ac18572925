"""Compiling in a process of its own: the same results and errors, and an end to what has none."""

from __future__ import annotations

import time

import pytest

from qimeng_attention.build import Toolchain, compile_apart, compile_cubin
from qimeng_attention.build.nvrtc import CompileError, CompileOptions
from qimeng_attention.errors import EnvironmentMissing

pytestmark = pytest.mark.cuda

# 2^24 types that no other place makes
BOMB = """
template <int Depth, unsigned Path> struct Tree {
    static constexpr unsigned value = Tree<Depth - 1, 2 * Path>::value + Tree<Depth - 1, 2 * Path + 1>::value;
};
template <unsigned Path> struct Tree<0, Path> { static constexpr unsigned value = Path; };
extern "C" __global__ void k(int* o) { o[0] = Tree<24, 1>::value; }
"""


def test_a_kernel_is_what_it_is_in_this_process(toolchain: Toolchain, tiny: str) -> None:
    asked = {
        "arch": "sm_80",
        "name": "tiny",
        "toolchain": toolchain,
        "options": CompileOptions(defines=("SOME=3",), max_registers=64),
    }
    here, apart = compile_cubin(tiny, **asked), compile_apart(tiny, **asked)  # type: ignore[arg-type]

    assert apart.cubin == here.cubin
    for line in ("bytes spill stores", "registers"):
        assert line in apart.log


def test_a_refusal_is_what_it_is_in_this_process(toolchain: Toolchain) -> None:
    source = '// tl:4 Copy K\nextern "C" __global__ void k() { int x = y; }\n'
    found = []
    for compile_ in (compile_cubin, compile_apart):
        with pytest.raises(CompileError) as error:
            compile_(source, arch="sm_80", name="k", toolchain=toolchain)
        found.append((error.value.message, error.value.hint, error.value.log, error.value.diagnostics))

    assert found[0] == found[1]
    assert found[1][3][0].span.line == 4


def test_text_that_is_no_unicode_is_refused_by_name(toolchain: Toolchain) -> None:
    with pytest.raises(CompileError, match="no Unicode text"):
        compile_apart("// \ud800", arch="sm_80", name="k", toolchain=toolchain)


def test_a_source_that_compiles_forever_is_ended_with_a_way_out(toolchain: Toolchain) -> None:
    began = time.monotonic()
    with pytest.raises(CompileError, match=r"was not done with k\.cu after 3 s") as error:
        compile_apart(BOMB, arch="sm_80", name="k", toolchain=toolchain, timeout_s=3.0)

    assert time.monotonic() - began < 20
    assert error.value.hint


def test_a_compilation_that_needs_more_memory_than_there_is_is_ended(toolchain: Toolchain) -> None:
    with pytest.raises(CompileError, match=r"out of memory|needs more memory") as error:
        compile_apart(BOMB, arch="sm_80", name="k", toolchain=toolchain, timeout_s=60.0, memory_bytes=3 << 29)

    assert error.value.hint


def test_a_process_that_cannot_run_is_no_fault_of_the_source(
    toolchain: Toolchain, tiny: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    with pytest.raises(EnvironmentMissing, match="cannot run"):
        compile_apart(tiny, arch="sm_80", name="tiny", toolchain=toolchain)
