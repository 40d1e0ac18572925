"""Compiling, and what a refusal says: lines of TL, lines of C++, no folders, no tracebacks."""

from __future__ import annotations

import pickle

import pytest

from qimeng_attention.build import CompileError, CompileOptions, Toolchain, compile_cubin, diagnose
from qimeng_attention.errors import NOWHERE, BuildError, EnvironmentMissing, Span

SOURCE = """\
#include <cute/tensor.hpp>
template <class T> __device__ void helper(T x) { static_assert(sizeof(T) == 2); }
// tl:3 Copy K (BN, D) in coordinate [L = i] from global to shared
extern "C" __global__ void k(float* p) {
  floot c;
// tl:9 Compute GEMM Q, K.T and get S
  helper(p[0]);
  p(1, 2, 3);
}
"""


def test_an_error_is_mapped_to_the_nearest_mark_above_it() -> None:
    log = 'k.cu(5): error: identifier "floot" is undefined\n    floot c;\n    ^\n'

    (found,) = diagnose(log, SOURCE, "k.cu")

    assert (found.code, found.span) == ("CU001", Span(line=3))
    assert found.message == 'identifier "floot" is undefined'
    assert found.hint == "see k.cu line 5: floot c;"


def test_an_error_above_every_mark_is_nowhere_in_tl() -> None:
    (found,) = diagnose("k.cu(1): catastrophic error: cannot open source file", SOURCE, "k.cu")

    assert found.span == NOWHERE
    assert "k.cu line 1" in found.hint


def test_an_error_in_a_header_is_mapped_through_its_instantiation() -> None:
    log = (
        "/opt/a/cute/stride.hpp(108): error #123-D: Mismatched Ranks\n"
        "          detected during:\n"
        '            instantiation of "auto crd2idx()" at line 171 of /opt/a/cute/layout.hpp\n'
        '            instantiation of "auto operator()" at line 8 of k.cu\n'
    )

    (found,) = diagnose(log, SOURCE, "k.cu")

    assert found.span == Span(line=9)
    assert found.hint == "see k.cu line 8: p(1, 2, 3); (raised in stride.hpp line 108)"
    assert "/opt" not in found.message + found.hint


def test_an_error_in_a_helper_of_the_same_text_is_mapped_to_its_use() -> None:
    log = (
        "k.cu(2): error: static assertion failed\n"
        '          detected during instantiation of "void helper(T) [with T=float]" at line 7\n'
    )

    (found,) = diagnose(log, SOURCE, "k.cu")

    assert found.span == Span(line=9)
    assert found.hint == "see k.cu line 7: helper(p[0]); (raised in k.cu line 2)"


def test_errors_that_follow_from_one_line_are_given_once() -> None:
    one = '/opt/stride.hpp({n}): error: wrong\n          detected during instantiation of "x" at line 8 of k.cu\n'
    log = one.format(n=1) + one.format(n=2) + "k.cu(8): error: also wrong\n"

    assert [d.message for d in diagnose(log, SOURCE, "k.cu")] == ["wrong", "also wrong"]


def test_warnings_are_no_errors() -> None:
    log = 'k.cu(5): warning #177-D: variable "c" was declared but never referenced\n'

    assert diagnose(log, SOURCE, "k.cu") == []


def test_no_more_than_twenty_errors_are_given() -> None:
    log = "\n".join(f"k.cu({n}): error: number {n}" for n in range(1, 60))

    assert len(diagnose(log, SOURCE, "k.cu")) == 20


@pytest.mark.parametrize(
    "line",
    [
        "ptxas error   : Entry function 'k' uses too much shared data",
        "ptxas application ptx input, line 24; error   : Arguments mismatch for instruction 'mma'",
        "nvrtc: error: invalid value for -arch",
    ],
)
def test_errors_without_a_place_have_their_own_code(line: str) -> None:
    (found,) = diagnose(line, SOURCE, "k.cu")

    assert (found.code, found.span) == ("CU002", NOWHERE)
    assert found.message == line.split(": ", 1)[1].removeprefix("error: ")


@pytest.mark.parametrize(
    ("options", "flag"),
    [
        (CompileOptions(fast_math=True), "--use_fast_math"),
        (CompileOptions(flush_denormals=True), "--ftz=true"),
        (CompileOptions(approximate_division=True), "--prec-div=false"),
        (CompileOptions(approximate_square_root=True), "--prec-sqrt=false"),
        (CompileOptions(max_registers=128), "--maxrregcount=128"),
        (CompileOptions(line_info=True), "-lineinfo"),
        (CompileOptions(defines=("A=1",)), "-DA=1"),
        (CompileOptions(extra=("--split-compile=2",)), "--split-compile=2"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_choice_is_one_flag(options: CompileOptions, flag: str) -> None:
    assert set(options.flags()) - set(CompileOptions().flags()) == {flag}


def test_a_refusal_travels_between_processes() -> None:
    error = CompileError("no", hint="do", log="words\nmore", diagnostics=diagnose("k.cu(5): error: x", SOURCE, "k.cu"))

    again = pickle.loads(pickle.dumps(error))

    assert isinstance(again, CompileError)
    assert issubclass(CompileError, BuildError)
    assert (again.log, again.diagnostics, again.to_json()) == (error.log, error.diagnostics, error.to_json())
    assert again.details["tail"] == "words\nmore"


@pytest.mark.cuda
def test_a_kernel_compiles_to_an_elf_file(toolchain: Toolchain, tiny: str) -> None:
    result = compile_cubin(tiny, arch="sm_80", name="tiny", toolchain=toolchain)

    assert result.cubin.startswith(b"\x7fELF")
    assert "Compiling entry function 'tiny' for 'sm_80'" in result.log
    assert result.seconds > 0


@pytest.mark.cuda
def test_a_mistake_in_the_kernel_is_mapped_to_tl(toolchain: Toolchain, tiny: str) -> None:
    wrong = tiny.replace("a[3], b[lane]", "a[3], bee[lane]")

    with pytest.raises(CompileError) as caught:
        compile_cubin(wrong, arch="sm_80", name="tiny", toolchain=toolchain)

    (found,) = caught.value.diagnostics
    assert found.span == Span(line=7)
    assert found.message == 'identifier "bee" is undefined'
    assert caught.value.to_json()["diagnostics"][0]["line"] == 7
    assert "1 error detected" in caught.value.log


@pytest.mark.cuda
def test_headers_are_taken_as_texts_and_may_include_each_other(toolchain: Toolchain) -> None:
    headers = {"a.cuh": '#include "b.cuh"\n', "b.cuh": "__device__ inline int three() { return 3; }\n"}
    source = '#include "a.cuh"\nextern "C" __global__ void k(int* p) { *p = three(); }\n'

    result = compile_cubin(source, arch="sm_90a", name="k", toolchain=toolchain, headers=headers)

    assert result.cubin


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("source", "arch", "reason"),
    [
        ('extern "C" __global__ void k() {}', "sm_99", "invalid value for --gpu-architecture"),
        (
            'extern "C" __global__ void k(float* p) { __shared__ float s[99999]; s[threadIdx.x] = p[0];'
            " __syncthreads(); p[1] = s[threadIdx.x ^ 1]; }",
            "sm_80",
            "uses too much shared data",
        ),
    ],
    ids=["architecture", "ptxas"],
)
def test_refusals_of_other_parts_are_told_too(toolchain: Toolchain, source: str, arch: str, reason: str) -> None:
    with pytest.raises(CompileError, match=reason) as caught:
        compile_cubin(source, arch=arch, name="k", toolchain=toolchain)

    assert caught.value.diagnostics[0].code == "CU002"
    assert "\0" not in caught.value.log


@pytest.mark.cuda
def test_text_that_is_no_unicode_is_refused(toolchain: Toolchain) -> None:
    with pytest.raises(CompileError, match="no Unicode text") as caught:
        compile_cubin("// \ud800", arch="sm_80", name="k", toolchain=toolchain)

    assert caught.value.hint == "remove the character at offset 3"


@pytest.mark.cuda
def test_an_nvrtc_that_cannot_be_loaded_is_one_line(toolchain: Toolchain, monkeypatch: pytest.MonkeyPatch) -> None:
    from cuda.bindings import nvrtc

    def broken() -> None:
        raise RuntimeError("libnvrtc.so.13: cannot open\nsecond line")

    monkeypatch.setattr(nvrtc, "nvrtcVersion", broken)

    with pytest.raises(EnvironmentMissing) as caught:
        compile_cubin("", arch="sm_80", name="k", toolchain=toolchain)

    assert caught.value.message == "NVRTC cannot be loaded: libnvrtc.so.13: cannot open"
