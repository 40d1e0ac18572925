"""Kernels for sm_75, compiled: the instructions that they are made of, and what they ask of the GPU."""

from __future__ import annotations

import re
from functools import cache

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.build import Built, Cache, Toolchain, build
from qimeng_attention.build.sass import _run
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.parser import parse
from qimeng_attention.translate import translate

T4 = targets.get("T4")


@cache
def built(d: int, arch: str = "sm_75", choice: str = "") -> Built:
    code = plan(AttentionSpec.make(Hq=8, Hk=2, Dqk=d, mask="causal", dtype="fp16"), T4).code
    (made,) = translate(
        schedule(parse(code.replace("Schedule\n", f"Schedule\n    {choice}\n" if choice else "Schedule\n")))
    )
    launch = {"threads": made.threads, "shared_bytes": made.shared_bytes, "target": T4}
    return build(made.source, name=made.name, arch=arch, cache=Cache.disabled(), **launch)


def opcodes(made: Built, toolchain: Toolchain) -> set[str]:
    """Give the full names of a kernel's instructions."""
    sass = _run(toolchain.nvdisasm, ["-c"], made.cubin, [])
    if sass is None:
        pytest.skip("needs nvdisasm")
    return set(re.findall(r"\b(?:HMMA|LDSM|LDGSTS|LDG|STS|BAR)[.\w]*", sass))


@pytest.mark.cuda
@pytest.mark.parametrize("d", [64, 128])
def test_a_causal_kernel_multiplies_by_m16n8k8_and_spills_nothing(toolchain: Toolchain, d: int) -> None:
    made = built(d)
    found = opcodes(made, toolchain)

    assert {x for x in found if x.startswith("HMMA")} == {"HMMA.1688.F32"}
    assert {x for x in found if x.startswith("LDSM")} == {"LDSM.16.M88.4", "LDSM.16.MT88.4"}
    assert "LDGSTS" not in {x.split(".")[0] for x in found}
    assert (made.report.spill_store_bytes, made.report.spill_load_bytes, made.report.stack_bytes) == (0, 0, 0)
    assert made.report.registers is not None
    assert made.report.registers <= 65_536 // (made.report.threads * made.report.occupancy.blocks_per_sm)


@pytest.mark.cuda
def test_tiles_are_asked_for_before_the_first_product(toolchain: Toolchain) -> None:
    """In the main loop the reads of global memory stand before the products, the writes to shared memory behind."""
    made = built(128)
    sass = _run(toolchain.nvdisasm, ["-c"], made.cubin, []) or ""
    order = re.findall(r"\b(LDG|HMMA|STS|BAR)\.", sass)
    first = order.index("HMMA")
    last_barrier = max(i for i, opcode in enumerate(order[:first]) if opcode == "BAR")

    assert made.report.hottest_loop is not None
    assert made.report.hottest_loop.count("LDG") > 0
    assert made.report.hottest_loop.count("STS") == made.report.hottest_loop.count("LDG")
    assert set(order[last_barrier + 1 : first]) == {"LDG"}


@pytest.mark.cuda
def test_the_same_program_is_built_for_hopper(toolchain: Toolchain) -> None:
    made = built(64, "sm_90")

    assert "HMMA.1688.F32" in opcodes(made, toolchain)
    assert made.report.spill_store_bytes == 0


@pytest.mark.cuda
def test_exponentials_on_the_fma_lanes_compile_too(toolchain: Toolchain) -> None:
    """Its maximum that keeps NaN is an instruction of sm_80; sm_75 compares and selects."""
    assert built(64, choice="approximate exp2 1 of 4").report.counts is not None


@pytest.mark.cuda
def test_the_compiler_of_the_12_series_makes_it_too(toolchain: Toolchain) -> None:
    if not toolchain.nvrtc.startswith("12."):
        pytest.skip(f"needs the extra cuda12 (NVRTC 12.9); NVRTC {toolchain.nvrtc} is installed")
    made = built(128)

    assert made.versions["cuda"] == "12.9"
    assert toolchain.nvdisasm is not None
    assert opcodes(made, toolchain) >= {"HMMA.1688.F32", "LDSM.16.M88.4"}
    assert made.report.spill_store_bytes == 0
