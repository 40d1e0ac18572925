"""The report on a cubin: from logs without tools, and from a real kernel."""

from __future__ import annotations

import dataclasses
import json

import pytest

from qimeng_attention import targets
from qimeng_attention.build import CompileOptions, ResourceReport, Toolchain, compile_cubin, report
from qimeng_attention.build.sass import LOCAL_OPCODES, entries
from qimeng_attention.errors import BuildError

A100 = targets.get("A100")
LOG = """\
ptxas info    : 2986 bytes gmem, 10776 bytes cmem[4]
ptxas info    : Compiling entry function 'first' for 'sm_80'
ptxas info    : Function properties for first
ptxas         .     8 bytes stack frame, 16 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 1024 bytes smem, 380 bytes cmem[0]
ptxas info    : Compiling entry function 'second' for 'sm_80'
ptxas info    : Function properties for second
ptxas         .     0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 40 registers, used 0 barriers
ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized
ptxas warning : Setting of maxnreg is ignored
"""
BARE = Toolchain(nvrtc="1", cuda="1", cccl="1", cutlass="1", includes=(), nvdisasm=None, cuobjdump=None)


def described(kernel: str, log: str = LOG, toolchain: Toolchain = BARE, cubin: bytes = b"") -> ResourceReport:
    return report(
        cubin,
        kernel=kernel,
        threads=128,
        shared_dynamic_bytes=64_512,
        target=A100,
        toolchain=toolchain,
        log=log,
    )


def test_the_kernels_of_a_log_are_named() -> None:
    assert entries(LOG) == ["first", "second"]


def test_each_kernel_gets_its_own_lines_of_the_log() -> None:
    first, second = described("first"), described("second")

    assert (first.registers, first.stack_bytes, first.shared_static_bytes) == (255, 8, 1024)
    assert (first.spill_store_bytes, first.spill_load_bytes) == (16, 24)
    assert (second.registers, second.stack_bytes, second.shared_static_bytes) == (40, 0, 0)


def test_static_and_dynamic_shared_memory_count_for_occupancy() -> None:
    found = described("first").occupancy

    assert found is not None
    assert found.blocks_per_sm == 2


def test_serialised_wgmma_is_a_warning() -> None:
    assert described("second").warnings == (
        "(C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized",
        "Setting of maxnreg is ignored",
    )


def test_without_tools_fields_are_none_and_a_note_says_so() -> None:
    found = described("first", log="")

    assert (found.registers, found.occupancy, found.counts, found.loops) == (None, None, None, None)
    assert found.notes == (
        "no compiler log: spills are unknown",
        "cuobjdump is not installed: what it would tell is left out",
        "nvdisasm is not installed: what it would tell is left out",
    )
    with pytest.raises(BuildError, match="was not read"):
        found.count("LDL")
    with pytest.raises(BuildError, match="was not read"):
        _ = found.main_loops


@pytest.mark.cuda
def test_a_tool_that_fails_leaves_a_note(toolchain: Toolchain) -> None:
    if toolchain.nvdisasm is None:
        pytest.skip("needs nvdisasm")

    found = described("first", toolchain=toolchain, cubin=b"no ELF file")

    assert found.counts is None
    assert found.notes == ("nvdisasm failed: CalledProcessError",)


@pytest.fixture(scope="module")
def compiled(toolchain: Toolchain, tiny: str) -> tuple[bytes, str]:
    """Compile the tiny kernel once: cubin and log."""
    if toolchain.nvdisasm is None or toolchain.cuobjdump is None:
        pytest.skip("needs nvdisasm and cuobjdump")
    result = compile_cubin(tiny, arch="sm_80", name="tiny", toolchain=toolchain)
    return result.cubin, result.log


@pytest.mark.cuda
def test_a_real_kernel_is_described(toolchain: Toolchain, compiled: tuple[bytes, str]) -> None:
    found = described("tiny", compiled[1], toolchain, compiled[0])

    assert found.shared_static_bytes == 512
    assert found.spill_store_bytes == found.spill_load_bytes == 0
    assert found.registers is not None
    assert 16 <= found.registers <= 64
    assert found.count("HMMA") == found.count("LDSM") == found.count("LDGSTS") == 1
    assert found.count("MUFU.EX2") == 4
    assert found.notes == ()
    json.dumps(found.to_json())


@pytest.mark.cuda
def test_the_main_loop_of_a_real_kernel_holds_its_product_and_no_local_memory(
    toolchain: Toolchain, compiled: tuple[bytes, str]
) -> None:
    found = described("tiny", compiled[1], toolchain, compiled[0])

    (loop,) = found.main_loops
    assert loop == found.hottest_loop
    assert loop.count("HMMA", "LDSM", "LDGSTS") == 3
    assert loop.count("MUFU.EX2", *LOCAL_OPCODES) == 0


@pytest.mark.cuda
def test_cuobjdump_stands_in_for_a_missing_log(toolchain: Toolchain, compiled: tuple[bytes, str]) -> None:
    cubin, log = compiled
    told, read = described("tiny", log, toolchain, cubin), described("tiny", "", toolchain, cubin)

    assert read.notes == ("no compiler log: spills are unknown",)
    assert read == dataclasses.replace(told, spill_store_bytes=None, spill_load_bytes=None, notes=read.notes)


@pytest.mark.cuda
def test_spills_are_seen_in_bytes_and_in_the_loop(toolchain: Toolchain) -> None:
    source = """
extern "C" __global__ void spilling(float* p, int n) {
  float x[96];
  for (int j = 0; j < 96; ++j) x[j] = p[j * 128 + threadIdx.x];
#pragma unroll 1
  for (int i = 0; i < n; ++i)
#pragma unroll
    for (int j = 0; j < 96; ++j) x[j] = fmaf(x[j], x[(j * 7 + 5) % 96], 1.f);
  for (int j = 0; j < 96; ++j) p[j * 128 + threadIdx.x] = x[j];
}
"""
    if toolchain.nvdisasm is None:
        pytest.skip("needs nvdisasm")
    options = CompileOptions(max_registers=40)  # a kernel with launch bounds would not heed it
    result = compile_cubin(source, arch="sm_80", name="spilling", toolchain=toolchain, options=options)

    found = described("spilling", result.log, toolchain, result.cubin)

    assert found.spill_store_bytes
    assert found.count(*LOCAL_OPCODES) > 0
    assert found.hottest_loop is not None
    assert found.hottest_loop.count(*LOCAL_OPCODES) > 0
