"""What is done where ptxas spills: one more compilation, at less effort, kept if it is better."""

from __future__ import annotations

import pytest

from qimeng_attention.build import CompileOptions, CompileResult
from qimeng_attention.build.spills import compile_without_spills, spilled
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import run

LINES = (
    "ptxas info    : Compiling entry function 'k' for 'sm_80'\n"
    "    {0} bytes stack frame, {0} bytes spill stores, 12 bytes spill loads\n"
    "ptxas info    : Used 255 registers"
)


class Compiler:
    """Give logs that spill what is written down for each effort, and note what was asked for."""

    def __init__(self, usual: int, less: int) -> None:
        self.spills, self.asked = {False: usual, True: less}, list[CompileOptions]()

    def __call__(self, options: CompileOptions) -> CompileResult:
        self.asked.append(options)
        less = any("-O1" in flag for flag in options.flags())
        return CompileResult(b"less" if less else b"usual", LINES.format(self.spills[less]), 1.0)


def test_without_spills_a_kernel_is_compiled_once() -> None:
    compiler = Compiler(0, 0)
    result, remark = compile_without_spills(compiler, CompileOptions())

    assert (result.cubin, result.seconds, remark) == (b"usual", 1.0, "")
    assert len(compiler.asked) == 1


@pytest.mark.parametrize(
    ("usual", "less", "kept", "says"),
    [
        (20, 0, b"less", "compiled by ptxas -O1: it spills 0 bytes a thread, -O3 20"),
        (20, 8, b"less", "compiled by ptxas -O1: it spills 8 bytes a thread, -O3 20"),
        (20, 20, b"usual", "ptxas spills 20 bytes a thread at -O3, and 20 at -O1"),
        (20, 24, b"usual", "ptxas spills 20 bytes a thread at -O3, and 24 at -O1"),
    ],
)
def test_with_spills_the_better_of_two_is_kept(usual: int, less: int, kept: bytes, says: str) -> None:
    compiler = Compiler(usual, less)
    result, remark = compile_without_spills(compiler, CompileOptions(fast_math=True))

    assert (result.cubin, result.seconds, remark) == (kept, 2.0, says)
    assert [one.fast_math for one in compiler.asked] == [True, True]


def test_the_users_own_words_to_ptxas_stand() -> None:
    compiler = Compiler(20, 0)
    result, remark = compile_without_spills(compiler, CompileOptions(extra=("--ptxas-options=-O3",)))

    assert (result.cubin, remark, len(compiler.asked)) == (b"usual", "", 1)


def test_a_kernel_of_roles_is_compiled_once() -> None:
    compiler = Compiler(20, 0)
    result, remark = compile_without_spills(compiler, CompileOptions(), roles=True)

    assert (result.cubin, remark, len(compiler.asked)) == (b"usual", "", 1)


def test_all_functions_of_a_log_count() -> None:
    assert spilled(LINES.format(8) + "\n" + LINES.format(4)) == 12
    assert spilled("") == 0


@pytest.mark.cuda
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("heads", [8, 1])
def test_tiles_that_take_all_registers_spill_nothing(dim: int, heads: int) -> None:
    alibi = "score - exp2(-8 * (h + 1) / Hq) * (q_idx + Sk - Sq - kv_idx)"
    spec = AttentionSpec.make(Hq=8, Hk=heads, Dqk=dim, mask="causal", score=alibi, dtype="bf16")
    (built,) = run(spec, target="A100", judge=False, until="cubin").results.builds

    assert built.report.spill_store_bytes == built.report.spill_load_bytes == 0
    assert any(note.startswith("compiled by ptxas -O1") for note in built.report.notes)
