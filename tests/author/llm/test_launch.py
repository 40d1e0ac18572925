"""A kernel in CUDA meets the launcher: its signature, its launch line, and what it may include."""

from __future__ import annotations

import pytest

from qimeng_attention import targets
from qimeng_attention.author.llm.includes import BadInclude, check_includes
from qimeng_attention.author.llm.launch import BadLaunch, Launch, facts_of, launch_of, signature, sizes_of
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.errors import SpecError

PLAIN = Wanted("words", "plain", (64, 64), "bf16")
NAMED = Wanted("words", "named", (192, 128), "fp16", ("Slopes in global (Hq) f32", "Doc in global (B, N) i32"), True)
A100 = targets.get("A100")


def launched(line: str, wanted: Wanted = PLAIN, target: str = "A100") -> Launch:
    return launch_of(f"{line}\n__global__ ...\n", wanted, targets.get(target))


def test_the_signature_has_the_launchers_order() -> None:
    assert signature(NAMED).splitlines() == [
        'extern "C" __global__ void named(',
        "    const __half* Q, long long Q_s0, long long Q_s1, long long Q_s2,  // (B, Sq, Hq, 192)",
        "    const __half* K, long long K_s0, long long K_s1, long long K_s2,  // (B, Sk, Hk, 192)",
        "    const __half* V, long long V_s0, long long V_s1, long long V_s2,  // (B, Sk, Hk, 128)",
        "    const float* Slopes,  // (Hq)",
        "    const int* Doc, long long Doc_s0,  // (B, N)",
        "    __half* Out, long long Out_s0, long long Out_s1, long long Out_s2,  // (B, Sq, Hq, 128)",
        "    float* Lse, long long Lse_s0, long long Lse_s1,  // (B, Hq, Sq)",
        "    int B, int Sq, int Sk, int Hq, int Hk, int N,",
        "    float scale)",
    ]


def test_facts_name_what_the_signature_does() -> None:
    facts = facts_of(NAMED, launched("// launch: threads=64 shared_bytes=0 grid=(N, Hq * B)", NAMED))

    assert facts["sizes"] == sizes_of(NAMED) == ["B", "Sq", "Sk", "Hq", "Hk", "N"]
    assert [(t["name"], t["align"]) for t in facts["tensors"]] == [
        ("Q", 16), ("K", 16), ("V", 16), ("Slopes", 4), ("Doc", 4), ("Out", 16), ("Lse", 4)
    ]  # fmt: skip
    assert [(g["name"], g["stop"]) for g in facts["grid"]] == [("x", "N"), ("y", ["*", "Hq", "B"])]


def test_a_tensor_in_another_form_is_refused() -> None:
    with pytest.raises(SpecError, match="declares no tensor"):
        signature(Wanted("words", "k", (64, 64), "bf16", ("Slopes: f32[Hq]",)))


@pytest.mark.parametrize(
    ("grid", "means"),
    [
        ("ceildiv(Sq, 64), Hq, B", (["ceildiv", "Sq", 64], "Hq", "B")),
        ("(Sq + 63) // 64 * Hq", (["*", ["//", ["+", "Sq", 63], 64], "Hq"],)),
        ("max(1, Sq % D), Dv", (["max", 1, ["%", "Sq", 64]], 64)),
        ("132,", (132,)),
    ],
)
def test_a_grid_is_one_to_three_expressions(grid: str, means: tuple[object, ...]) -> None:
    assert launched(f"// launch: threads=128 shared_bytes=49152 grid=({grid})") == Launch(128, 49152, means)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("#include <mma.h>", "is missing"),
        ("\n// launch: threads=128 shared_bytes=0 grid=(B)", "stands further down"),
        ("// launch: 128 threads, grid=(B)", "has another form"),
        ("// launch: threads=128 grid=(B) shared_bytes=0", "has another form"),
        ("// launch: threads=4*32 shared_bytes=0 grid=(B)", "is no integer"),
        ("// launch: threads=16 shared_bytes=0 grid=(B)", "not from 32 to 1024"),
        ("// launch: threads=2048 shared_bytes=0 grid=(B)", "not from 32 to 1024"),
        ("// launch: threads=128 shared_bytes=-1 grid=(B)", "is no integer"),
        ("// launch: threads=128 shared_bytes=166913 grid=(B)", "not from 0 to 166912"),
        ("// launch: threads=128 shared_bytes=0 grid=()", "0 entries"),
        ("// launch: threads=128 shared_bytes=0 grid=(B, B, B, B)", "4 entries"),
        ("// launch: threads=128 shared_bytes=0 grid=(B, 0)", "is 0"),
        ("// launch: threads=128 shared_bytes=0 grid=(B,, 2)", "no list of expressions"),
        ("// launch: threads=128 shared_bytes=0 grid=(] + [B)", "0 entries"),
        ("// launch: threads=128 shared_bytes=0 grid=(Sq / 64)", "no integer expression"),
        ("// launch: threads=128 shared_bytes=0 grid=(Rows)", "no integer expression"),
        ("// launch: threads=128 shared_bytes=0 grid=(True)", "no integer expression"),
        ("// launch: threads=128 shared_bytes=0 grid=(2.5)", "no integer expression"),
        ("// launch: threads=128 shared_bytes=0 grid=(ceildiv(Sq))", "no integer expression"),
        ("// launch: threads=128 shared_bytes=0 grid=(min(*B))", "no integer expression"),
        ("// launch: threads=128 shared_bytes=0 grid=(B.real)", "no integer expression"),
        ("// launch: threads=128 shared_bytes=0 grid=(__import__('os').getpid())", "no integer expression"),
        (f"// launch: threads=128 shared_bytes=0 grid=({'-' * 190}B)", "no integer expression"),
        (f"// launch: threads=128 shared_bytes=0 grid=({'B+' * 30}B)", "nested too deeply"),
        ("// launch: threads=128 shared_bytes=0 grid=(4294967296)", "no integer expression"),
        (f"// launch: threads=128 shared_bytes=0 grid=({'B + ' * 60}B)", "over 200 characters"),
    ],
)
def test_a_launch_line_that_no_launch_can_follow_is_refused(line: str, says: str) -> None:
    with pytest.raises(BadLaunch, match=says) as fault:
        launched(line)
    assert fault.value.hint


def test_the_limit_of_shared_memory_is_the_targets() -> None:
    line = "// launch: threads=128 shared_bytes=100000 grid=(B)"

    assert launched(line).shared_bytes == 100_000
    with pytest.raises(BadLaunch, match="65536"):
        launched(line, target="T4")


def test_a_grid_that_divides_by_a_slash_is_told_what_to_write() -> None:
    with pytest.raises(BadLaunch) as fault:
        launched("// launch: threads=128 shared_bytes=0 grid=((Sq + 63) / 64)")
    assert "ceildiv" in fault.value.hint
    assert "division is //" in fault.value.hint


# ------------------------------------------------------------------ includes
@pytest.mark.parametrize(
    "text",
    [
        "#include <cuda_fp16.h>\n#include <cuda_bf16.h>\n#include <mma.h>\n#include <cuda_runtime.h>",
        "  #  include<cute/tensor.hpp>  // layouts\n#include <cute/arch/mma_sm80.hpp> /* atoms */",
        '// includes nothing\nconst char* s = "include";',
        "#define included 1\n#pragma unroll",
    ],
)
def test_the_headers_of_types_and_of_cute_may_be_included(text: str) -> None:
    check_includes(text)


@pytest.mark.parametrize(
    "text",
    [
        '#include "sm80.cuh"',
        '#include "/etc/passwd"',
        "#include </etc/passwd>",
        "#include <stdio.h>",
        "#include <cute/../../secret.hpp>",
        "#include <cute/tensor.h>",
        "#include <cuda_fp16.h>x",
        "#include_next <mma.h>",
        "#import <mma.h>",
        '#embed "/etc/passwd"',
        '#  /* a */ include /**/ "/etc/passwd"',
        '#inc\\\nlude "/etc/passwd"',
        '#inc\\  \nlude "/etc/passwd"',
        '#\\\r\ninclude "/etc/passwd"',
        '%:include "/etc/passwd"',
        '??=include "/etc/passwd"',
        '#include ??/\n"/etc/passwd"',
        '#define FILE "/etc/passwd"\n#include FILE',
        '"/*"\n#/**/include "/etc/passwd"\n"*/"',
        '#/* over\n two lines */include "/etc/passwd"',
        'R"(\n#include "/etc/passwd"\n)"',
        '#if __has_include("/etc/passwd")\n#endif',
        '#if __has_embed("/etc/passwd")\n#endif',
    ],
)
def test_every_other_file_is_refused_before_a_compiler_runs(text: str) -> None:
    with pytest.raises(BadInclude) as fault:
        check_includes(f"{text}\n")
    assert "<mma.h>" in fault.value.hint or "trigraph" in fault.value.message
