"""Thread-value layouts: the PTX formulas, every element held once, and CuTe's own traits."""

from __future__ import annotations

import pytest

from qimeng_attention import targets
from qimeng_attention.targets import atoms
from qimeng_attention.targets.atoms import Fragment, MmaAtom

MMA = {atom.name: atom for atom in atoms.MMA_ATOMS}
WGMMA = [
    atoms.wgmma(n, dtype, a_in_registers=True) for n, dtype in [(8, "fp16"), (128, "bf16"), (176, "bf16"), (64, "fp8")]
]


def fragments() -> list[tuple[str, Fragment]]:
    mma = [*atoms.MMA_ATOMS, *WGMMA]
    named = [(f"{a.name} {role}", getattr(a, role)) for a in mma for role in "abc"]
    copies = [(a.name, a.destination) for a in atoms.COPY_ATOMS]
    return [(name, fragment) for name, fragment in [*named, *copies] if fragment is not None]


@pytest.mark.parametrize(("name", "fragment"), fragments(), ids=lambda value: value if isinstance(value, str) else "")
def test_every_element_is_held_exactly_once(name: str, fragment: Fragment) -> None:
    held = [fragment.at(t, v) for t in range(fragment.thread_count) for v in range(fragment.value_count)]

    assert sorted(held) == [(r, c) for r in range(fragment.rows) for c in range(fragment.columns)], name


@pytest.mark.parametrize("name", ["m16n8k16 fp16", "m16n8k16 bf16"])
def test_m16n8k16_is_laid_out_as_in_the_ptx_isa(name: str) -> None:
    atom = MMA[name]
    assert atom.a is not None
    assert atom.b is not None

    for lane in range(32):
        for v in range(8):
            expected = lane // 4 + 8 * (v // 2 % 2), (lane % 4) * 2 + v % 2 + 8 * (v // 4)
            assert atom.a.at(lane, v) == expected
        for v in range(4):
            assert atom.b.at(lane, v) == (lane // 4, (lane % 4) * 2 + v % 2 + 8 * (v // 2))
            assert atom.c.at(lane, v) == (lane // 4 + 8 * (v // 2), (lane % 4) * 2 + v % 2)


def test_ldmatrix_gives_what_the_mma_takes() -> None:
    """Two matrices of 8 rows, then two of the next 8 columns, are the A operand of m16n8k16."""
    loaded = next(a.destination for a in atoms.COPY_ATOMS if a.name == "ldmatrix x4")
    a = MMA["m16n8k16 bf16"].a
    assert loaded is not None
    assert a is not None

    for lane in range(32):
        for v in range(8):
            matrix, row = divmod(loaded.at(lane, v)[0], 8)
            expected = row + 8 * (matrix % 2), loaded.at(lane, v)[1] + 8 * (matrix // 2)
            assert a.at(lane, v) == expected


@pytest.mark.parametrize("n", [0, 4, 12, 264])
def test_wgmma_refuses_a_width_that_does_not_exist(n: int) -> None:
    with pytest.raises(ValueError, match="wgmma needs n"):
        atoms.wgmma(n, "bf16", a_in_registers=True)


def test_wgmma_takes_a_from_registers_or_from_shared_memory() -> None:
    in_registers = atoms.wgmma(128, "bf16", a_in_registers=True)
    in_shared = atoms.wgmma(128, "bf16", a_in_registers=False)

    assert (in_registers.cute, in_shared.cute) == (
        "SM90_64x128x16_F32BF16BF16_RS",
        "SM90_64x128x16_F32BF16BF16_SS",
    )
    assert in_shared.a is None
    assert in_shared.flops == 2 * 64 * 128 * 16


@pytest.mark.parametrize(
    ("gpu", "mma", "copies"),
    [
        ("T4", ["m16n8k8 fp16"], 2),
        ("A100", ["m16n8k8 fp16", "m16n8k16 fp16", "m16n8k16 bf16"], 4),
        ("L40S", ["m16n8k8 fp16", "m16n8k16 fp16", "m16n8k16 bf16", "m16n8k32 fp8"], 4),
        ("H200", ["m16n8k8 fp16", "m16n8k16 fp16", "m16n8k16 bf16", "m16n8k32 fp8"], 6),
    ],
)
def test_a_gpu_has_the_atoms_of_its_capabilities(gpu: str, mma: list[str], copies: int) -> None:
    target = targets.get(gpu)

    assert [a.name for a in atoms.mma_atoms(target)] == mma
    assert len(atoms.copy_atoms(target)) == copies


def assertions(atom: MmaAtom) -> list[str]:
    """Say, in C++, that CuTe's traits give the same element per thread and value; rows count fastest."""
    arguments = {"_RS": "<GMMA::Major::K, GMMA::Major::K>", "_RS_TN": "<>"}
    suffix = next((a for end, a in arguments.items() if atom.cute.endswith(end)), "")
    traits = f"MMA_Traits<{atom.cute}{suffix}>"
    lines = [f"static_assert(size<1>(typename {traits}::Shape_MNK{{}}) == {atom.n});"]
    for role in "abc":
        fragment: Fragment | None = getattr(atom, role)
        if fragment is None:
            continue
        layout = f"typename {traits}::{role.upper()}Layout{{}}"
        step = max(1, fragment.value_count // 16)
        for thread in range(0, fragment.thread_count, 3):
            for value in range(0, fragment.value_count, step):
                row, column = fragment.at(thread, value)
                lines.append(f"static_assert({layout}({thread}, {value}) == {row + column * fragment.rows});")
    return lines


@pytest.mark.cuda
def test_layouts_agree_with_cutes_traits() -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra: NVRTC is not installed")
    build = pytest.importorskip("qimeng_attention.build")
    checks = [line for atom in [*atoms.MMA_ATOMS, *WGMMA[1:2], WGMMA[3]] for line in assertions(atom)]
    headers = ["sm75", "sm80", "sm89", "sm90_gmma"]
    source = "\n".join(
        [
            "#include <cute/tensor.hpp>",
            *(f"#include <cute/atom/mma_traits_{header}.hpp>" for header in headers),
            "using namespace cute;",
            *checks,
            'extern "C" __global__ void nothing() {}',
        ]
    )

    result = build.compile_cubin(source, arch="sm_90a", name="layouts")

    assert len(checks) > 300
    assert result.cubin.startswith(b"\x7fELF")
