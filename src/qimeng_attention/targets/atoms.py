"""MMA and copy atoms of each generation: shapes, CuTe names and thread-value layouts, as data.

A layout is a `Fragment`: which element of a tile a thread holds as its value number v. Its modes are those of
CuTe's thread-value layouts, fastest first, with a stride for the row and one for the column instead of a
single index, so
for C of m16n8k16: row = lane // 4 + 8 * (v // 2), column = (lane % 4) * 2 + v % 2.

Source: PTX ISA, "Matrix Fragments" of mma.sync, wgmma.mma_async and ldmatrix; CUTLASS 4.2,
cute/atom/mma_traits_*.hpp, which the tests compare with.

Not here: tilings of atoms over warps and swizzles (translation chooses those).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from qimeng_attention.targets import Target

Mode = tuple[int, int, int]  # extent, stride along rows, stride along columns


@dataclass(frozen=True, slots=True)
class Fragment:
    """Who holds what of a tile of `rows` x `columns` elements."""

    rows: int
    columns: int
    threads: tuple[Mode, ...]  # of the lane's (or the thread's, in a warpgroup) number, fastest first
    values: tuple[Mode, ...]  # of the value's number, fastest first

    @property
    def thread_count(self) -> int:
        """32 for a warp, 128 for a warpgroup."""
        return prod(extent for extent, _, _ in self.threads)

    @property
    def value_count(self) -> int:
        """Elements per thread."""
        return prod(extent for extent, _, _ in self.values)

    def at(self, thread: int, value: int) -> tuple[int, int]:
        """Give (row, column) of a thread's value."""
        row = column = 0
        for number, modes in ((thread, self.threads), (value, self.values)):
            for extent, row_stride, column_stride in modes:
                number, digit = divmod(number, extent)
                row, column = row + digit * row_stride, column + digit * column_stride
        return row, column


@dataclass(frozen=True, slots=True)
class MmaAtom:
    """D (m, n) += A (m, k) times B (n, k), both K-major, fp32 accumulator.

    `a` or `b` is None where the operand comes from shared memory through a descriptor. Rows of `b` count n.
    """

    name: str
    cute: str  # the struct in cute/arch/mma_*.hpp
    capability: str
    dtype: str  # of A and B: "fp16", "bf16" or "fp8" (e4m3)
    m: int
    n: int
    k: int
    a: Fragment | None
    b: Fragment | None
    c: Fragment

    @property
    def flops(self) -> int:
        """Of one instruction: multiplications and additions."""
        return 2 * self.m * self.n * self.k


@dataclass(frozen=True, slots=True)
class CopyAtom:
    """One instruction that moves a tile; `destination` says what a lane receives, where that is registers."""

    name: str
    cute: str  # the struct in cute/arch/copy_*.hpp
    capability: str
    origin: str  # "global" or "shared"
    target: str  # "shared" or "register"
    bytes_per_thread: int  # 0 where one thread issues for all
    alignment_bytes: int  # of both addresses
    destination: Fragment | None = None


_PAIRS: tuple[Mode, ...] = ((4, 0, 2), (8, 1, 0))  # four lanes share a row, two neighbouring values each
_QUADS: tuple[Mode, ...] = ((4, 0, 4), (8, 1, 0))  # the same for 8-bit types, four values each
_WARPS: Mode = (4, 16, 0)  # a warpgroup's warps lie one below the other

_ACCUMULATOR = Fragment(16, 8, _PAIRS, ((2, 0, 1), (2, 8, 0)))
_A_16X16 = Fragment(16, 16, _PAIRS, ((2, 0, 1), (2, 8, 0), (2, 0, 8)))
_B_8X16 = Fragment(8, 16, _PAIRS, ((2, 0, 1), (2, 0, 8)))

MMA_ATOMS: tuple[MmaAtom, ...] = (
    MmaAtom(
        "m16n8k8 fp16",
        "SM75_16x8x8_F32F16F16F32_TN",
        "mma m16n8k8",
        "fp16",
        16,
        8,
        8,
        a=_ACCUMULATOR,
        b=Fragment(8, 8, _PAIRS, ((2, 0, 1),)),
        c=_ACCUMULATOR,
    ),
    MmaAtom(
        "m16n8k16 fp16",
        "SM80_16x8x16_F32F16F16F32_TN",
        "mma m16n8k16",
        "fp16",
        16,
        8,
        16,
        a=_A_16X16,
        b=_B_8X16,
        c=_ACCUMULATOR,
    ),
    MmaAtom(
        "m16n8k16 bf16",
        "SM80_16x8x16_F32BF16BF16F32_TN",
        "mma m16n8k16",
        "bf16",
        16,
        8,
        16,
        a=_A_16X16,
        b=_B_8X16,
        c=_ACCUMULATOR,
    ),
    MmaAtom(
        "m16n8k32 fp8",
        "SM89_16x8x32_F32E4M3E4M3F32_TN",
        "fp8",
        "fp8",
        16,
        8,
        32,
        a=Fragment(16, 32, _QUADS, ((4, 0, 1), (2, 8, 0), (2, 0, 16))),
        b=Fragment(8, 32, _QUADS, ((4, 0, 1), (2, 0, 16))),
        c=_ACCUMULATOR,
    ),
)

_LDMATRIX = Fragment(32, 8, _PAIRS, ((2, 0, 1), (4, 8, 0)))  # lane i gives the address of row i
_LDMATRIX_TRANSPOSED = Fragment(32, 8, ((4, 2, 0), (8, 0, 1)), ((2, 1, 0), (4, 8, 0)))

COPY_ATOMS: tuple[CopyAtom, ...] = (
    CopyAtom("ldmatrix x4", "SM75_U32x4_LDSM_N", "ldmatrix", "shared", "register", 16, 16, _LDMATRIX),
    CopyAtom(
        "ldmatrix x4 transposed",
        "SM75_U16x8_LDSM_T",
        "ldmatrix",
        "shared",
        "register",
        16,
        16,
        _LDMATRIX_TRANSPOSED,
    ),
    CopyAtom("cp.async 16", "SM80_CP_ASYNC_CACHEGLOBAL<uint128_t>", "async copy", "global", "shared", 16, 16),
    CopyAtom(
        "cp.async 16 or zero", "SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>", "async copy", "global", "shared", 16, 16
    ),
    CopyAtom("tma load", "SM90_TMA_LOAD", "tma", "global", "shared", 0, 16),
    CopyAtom("tma store", "SM90_TMA_STORE", "tma", "shared", "global", 0, 16),
)

_WGMMA_TYPES = {"fp16": ("F16F16", 16), "bf16": ("BF16BF16", 16), "fp8": ("E4M3E4M3", 32)}


def wgmma(n: int, dtype: str, *, a_in_registers: bool) -> MmaAtom:
    """Give the warpgroup's atom of 64 x n x (32 bytes of k); ValueError unless n is 8, 16, ..., 256."""
    if n % 8 or not 8 <= n <= 256:
        raise ValueError(f"wgmma needs n in 8, 16, ..., 256, not {n}")
    types, k = _WGMMA_TYPES[dtype]
    majors = "_TN" if dtype == "fp8" else ""  # 8-bit operands are K-major only; others take it as an argument
    cute = f"SM90_64x{n}x{k}_F32{types}_{'RS' if a_in_registers else 'SS'}{majors}"
    lanes, values = (_QUADS, ((4, 0, 1), (2, 8, 0), (2, 0, 16))) if k == 32 else (_PAIRS, _A_16X16.values)
    a = Fragment(64, k, (*lanes, _WARPS), values) if a_in_registers else None
    c = Fragment(64, n, (*_PAIRS, _WARPS), ((2, 0, 1), (2, 8, 0), (n // 8, 0, 8)))
    return MmaAtom(f"m64n{n}k{k} {dtype}", cute, "wgmma", dtype, 64, n, k, a=a, b=None, c=c)


def mma_atoms(target: Target) -> tuple[MmaAtom, ...]:
    """Give the warp-wide MMA atoms of a GPU, larger k last; `wgmma` makes the warpgroup's."""
    return tuple(a for a in MMA_ATOMS if target.has(a.capability) and a.dtype in target.dtypes)


def copy_atoms(target: Target) -> tuple[CopyAtom, ...]:
    """Give the copy atoms of a GPU."""
    return tuple(a for a in COPY_ATOMS if target.has(a.capability))
