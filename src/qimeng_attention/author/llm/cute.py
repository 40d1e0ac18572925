"""What a model is told of CUDA when it translates TL: a GPU's atoms as lines, and a line for each statement.

Atoms and who holds what of them come from the table of atoms. A statement's line says in general terms what becomes of
it; a prompt holds lines and no kernel.

Not here: the compiler's own translation (translate).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from qimeng_attention.targets import Target
from qimeng_attention.targets.atoms import CopyAtom, Fragment, MmaAtom, Mode, copy_atoms, mma_atoms, wgmma
from qimeng_attention.tl.statements import TABLE

_BY_TENSOR_MAP = "tma"  # a kernel whose launcher hands over no tensor maps cannot use it
_ONE_ARCH = "a"  # ends the name of an architecture that has instructions of its own

# By the statement's name in the table. What rewritings alone write, and macros, has no line.
TERMS: Mapping[str, str] = {
    "Size": "`constexpr int` with a value, an argument without.",
    "Tile": "`constexpr int`.",
    "Scalar": "an argument.",
    "Grid": "the launch line's grid and `blockIdx`.",
    "Let": "a `const int` that every thread computes.",
    "Allocate": "in global a pointer with its strides (`make_tensor(make_gmem_ptr(K), ...)`); in register (BM q, D) "
    "an accumulator, `partition_fragment_C`, with its first value; in register (BM q) one float for each row that the "
    "thread holds values of, the same in the lanes that share the row.",
    "Copy": "from global to shared a tiled copy, rows past the end predicated, then a wait and `__syncthreads()`, and "
    "another before the tile is overwritten; from register to global predicated stores, vectors by one lane a row.",
    "GEMM": "operands from shared memory into fragments by the copy atoms, then `gemm(tiled_mma, rA, rB, acc)` over "
    "the steps of k; `get` clears the accumulator first. `.T` moves nothing.",
    "Mask": "a loop over the accumulator's values, whose global q and k follow from the atom's layout "
    "(`partition_C(make_identity_tensor(...))`).",
    "Compute": "a loop over the thread's values in float; a vector meets a tile by the value's row. RowMax and RowSum: "
    "over the thread's values of a row, then over the lanes that share it (`__shfl_xor_sync`).",
    "for": "a loop.",
    "if": "a branch that all threads take.",
}


def atom_lines(target: Target, arch: str, dtype: str) -> tuple[list[str], list[str]]:
    """Describe the MMA atoms for a type, and the copy atoms, that a kernel for an architecture can use."""
    products = [_of_mma(a) for a in mma_atoms(target) if a.dtype == dtype]
    if target.has("wgmma") and arch.endswith(_ONE_ARCH):
        products += [_of_mma(wgmma(64, dtype, a_in_registers=registers)) for registers in (False, True)]
    copies = [a for a in copy_atoms(target) if a.capability != _BY_TENSOR_MAP]
    return products, [_of_copy(a) for a in copies]


def terms(target: Target, dtype: str) -> list[tuple[str, str, str]]:
    """Give the lines of a prompt: a statement's example, what it means, what becomes of it."""
    said = {**TERMS, "Reshape": _reshape(target, dtype)}
    return [(rule.example, rule.doc, said[rule.name]) for rule in TABLE.values() if rule.name in said]


def _of_mma(atom: MmaAtom) -> str:
    who = "a warp" if atom.c.thread_count == 32 else "a warpgroup of 4 warps"
    fragments = [("A", atom.a), ("B", atom.b), ("C", atom.c)]
    parts = [f"{name}: {layout(f)}" if f else f"{name} in shared memory" for name, f in fragments]
    return f"`{atom.cute}` ({atom.name}), {who}. {'; '.join(parts)}."


def layout(f: Fragment) -> str:
    """Say which element value v of a thread is: its rows and columns, B's rows counting n."""
    digits = [*_digits("lane" if f.thread_count == 32 else "thread", f.threads), *_digits("v", f.values)]
    row, column = (" + ".join(_times(d, m[axis]) for d, m in digits if m[axis]) or "0" for axis in (1, 2))
    return f"{f.value_count} values, row {row}, column {column}"


def _digits(name: str, modes: Sequence[Mode]) -> list[tuple[str, Mode]]:
    """Write each digit of a mixed-radix number as C does."""
    found, below = [], 1
    for place, mode in enumerate(modes):
        digit = name if below == 1 else f"{name} / {below}"
        found.append((digit if place == len(modes) - 1 else f"{digit} % {mode[0]}", mode))
        below *= mode[0]
    return found


def _times(digit: str, stride: int) -> str:
    if stride == 1:
        return digit if " " not in digit else f"({digit})"
    return f"{stride} * ({digit})" if " " in digit else f"{stride} * {digit}"


def _of_copy(atom: CopyAtom) -> str:
    moved = f"{atom.bytes_per_thread} bytes a thread, both addresses multiples of {atom.alignment_bytes}"
    held = f"; a lane gets {layout(atom.destination)}" if atom.destination else ""
    return f"`{atom.cute}` ({atom.name}): {atom.origin} to {atom.target}, {moved}{held}."


def _reshape(target: Target, dtype: str) -> str:
    atom = [a for a in mma_atoms(target) if a.dtype == dtype][-1]
    assert atom.a is not None
    side_by_side = atom.a.value_count // atom.c.value_count
    made = (
        "each accumulator atom is one A operand as it lies"
        if side_by_side == 1
        else f"{side_by_side} accumulator atoms side by side along n make one A operand"
    )
    return f"values rounded to the type named, nothing moves between threads: with {atom.name}, {made}."
