"""The syntax tree of TL: one tree for sketch, code and scheduled code.

Every node is immutable and compares by meaning: places (`span`) do not take part, comments do, because an author's
reasons must survive printing and rewriting. `parse(print(tree)) == tree` holds for every tree the parser can make.

Not here: what a node means (statements/), how it is written (printer.py, grammar.lark).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from qimeng_attention.errors import NOWHERE, Span


@dataclass(frozen=True, slots=True)
class Node:
    """Base of what has a place in the text; the place takes no part in comparison."""

    span: Span = field(default=NOWHERE, compare=False, repr=False, kw_only=True)


# ------------------------------------------------------------------ expressions


@dataclass(frozen=True, slots=True)
class Num(Node):
    """A literal; an int stays an int, `0.5` and `1e-3` are floating."""

    value: int | float


@dataclass(frozen=True, slots=True)
class Name(Node):
    """A size, scalar, loop variable, tile, axis or constant."""

    id: str


@dataclass(frozen=True, slots=True)
class Unary(Node):
    """`-x` or `not x`."""

    op: str
    operand: Expr


@dataclass(frozen=True, slots=True)
class Binary(Node):
    """Arithmetic `+ - * / // %` and `and`, `or`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Compare(Node):
    """A chain `a <= b < c`, as in mathematics."""

    operands: tuple[Expr, ...]
    ops: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Call(Node):
    """A function of the table in functions.py."""

    function: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Index(Node):
    """An element of a named global tensor: `slopes[head]`, `document[batch, k]`."""

    tensor: str
    indices: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Scan(Node):
    """`Scan S along k reverse exclusive`: running sums of a tile along an axis."""

    tile: str
    axis: str
    reverse: bool = False
    exclusive: bool = False


Expr: TypeAlias = Num | Name | Unary | Binary | Compare | Call | Index | Scan


# ------------------------------------------------------------------ parts of statements


@dataclass(frozen=True, slots=True)
class Dim:
    """One extent of a shape, with the axis it carries where one is given: `BM q`; a register tile that no Copy or
    GEMM places may say where it begins, `BM q = block * BM`."""

    size: Expr
    axis: str | None = None
    start: Expr | None = None


@dataclass(frozen=True, slots=True)
class Coordinate:
    """One entry of `in coordinate [...]`: `batch`, `q = block * BM`, `k = a : b`, `k = i * BN at Table[...] * page`."""

    start: Expr
    axis: str | None = None
    stop: Expr | None = None
    at: Expr | None = None


@dataclass(frozen=True, slots=True)
class Range:
    """`start : stop`, stop excluded."""

    start: Expr
    stop: Expr


@dataclass(frozen=True, slots=True)
class Operand(Node):
    """An operand of GEMM: `K.T`, `Q[w * 64 : (w + 1) * 64]`, `K.T slot i % 2 at k = i * BN`."""

    name: str
    transposed: bool = False
    rows: Range | None = None
    slot: Expr | None = None
    at: tuple[tuple[str, Expr], ...] = ()


@dataclass(frozen=True, slots=True)
class GridDim:
    """One index of the grid; the first listed varies fastest."""

    name: str
    start: Expr
    stop: Expr
    down: bool = False


# ------------------------------------------------------------------ statements


@dataclass(frozen=True, slots=True)
class Statement(Node):
    """Base of all statements: `above` are comment lines before it, `comment` stands behind it."""

    above: tuple[str, ...] = field(default=(), kw_only=True)
    comment: str = field(default="", kw_only=True)


@dataclass(frozen=True, slots=True)
class Size(Statement):
    """`Size B, Sq` (arguments at run time) or `Size D = 128` (fixed)."""

    entries: tuple[tuple[str, Expr | None], ...]


@dataclass(frozen=True, slots=True)
class Choose(Statement):
    """`Choose Splits = 132 // (B * Hk)`: the value a launcher gives a run-time size that the caller does not."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Scalar(Statement):
    """`Scalar scale f32 > 0`: a number given at each call, and what the launcher must find true of it."""

    name: str
    dtype: str
    op: str | None = None
    bound: Expr | None = None


@dataclass(frozen=True, slots=True)
class Tile(Statement):
    """`Tile BM = 128, BN = 64`: sizes that the author reasons."""

    entries: tuple[tuple[str, Expr], ...]


@dataclass(frozen=True, slots=True)
class Grid(Statement):
    """`Grid block = 0 : ceildiv(Sq, BM), head = 0 : Hq`: one block of threads for each index, or `persistent`
    blocks."""

    dims: tuple[GridDim, ...]
    persistent: bool = False
    counter: bool = False  # a persistent block takes the next tile that nobody has; else they are dealt in rounds


@dataclass(frozen=True, slots=True)
class Warps(Statement):
    """`Warps 4 along q, 2 blocks an SM`: threads of a block, the axis they divide, and the residency asked for."""

    count: Expr
    axis: str
    blocks: Expr | None = None


@dataclass(frozen=True, slots=True)
class Let(Statement):
    """`Let last = ceildiv(Sk, BN)`: an integer the whole block agrees on."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Find(Statement):
    """`Find batch = 0 : B where Start[batch] <= row`: the last integer of a range up to which a condition holds."""

    name: str
    range: Range
    condition: Expr  # of the name: it holds from the range's start up to the one looked for


@dataclass(frozen=True, slots=True)
class Allocate(Statement):
    """A tensor in global memory, or a tile in shared memory or registers."""

    name: str
    space: str
    dims: tuple[Dim, ...]
    dtype: str | None = None
    init: Expr | None = None
    offset: Expr | None = None
    stages: Expr | None = None
    swizzle: int | None = None
    view: str | None = None  # the same elements as another tile's first rows and columns
    over: str | None = None  # the same bytes as another tile, whose content it destroys
    contiguous: str | None = None  # the axis along which elements lie side by side; in registers: in pieces of rows


@dataclass(frozen=True, slots=True)
class Copy(Statement):
    """Move a tile between memories; a sketch leaves `dims` and `coordinate` out."""

    name: str
    source: str
    target: str
    dims: tuple[Dim, ...] = ()
    coordinate: tuple[Coordinate, ...] = ()
    to_name: str | None = None
    slot: Expr | None = None
    asynchronous: bool = False
    signals: str | None = None
    accumulate: bool = False


@dataclass(frozen=True, slots=True)
class Gemm(Statement):
    """`Compute GEMM A, B and get C` or `... and accumulate C`."""

    a: Operand
    b: Operand
    out: str
    accumulate: bool = False
    asynchronous: bool = False


@dataclass(frozen=True, slots=True)
class Mask(Statement):
    """`Compute Mask S where cond else x`: -inf, or x, where the condition fails."""

    tile: str
    condition: Expr
    fill: Expr | None = None


@dataclass(frozen=True, slots=True)
class Compute(Statement):
    """`Compute expression and get [new] X`."""

    value: Expr
    out: str
    new: bool = False


@dataclass(frozen=True, slots=True)
class Apply(Statement):
    """`Compute OnlineSoftmax S, O, m, l with c`: a macro of TL, or an operator in its word form."""

    operator: str
    args: tuple[Expr, ...]
    params: tuple[Expr, ...] = ()
    out: str | None = None
    new: bool = False


@dataclass(frozen=True, slots=True)
class Reshape(Statement):
    """Change a register tile's role in the MMA, and with `as` its type."""

    name: str
    source: tuple[str, str, str]
    target: tuple[str, str, str]
    dtype: str | None = None
    out: str | None = None


@dataclass(frozen=True, slots=True)
class For(Statement):
    """`for i = a : b, c : d down unroll 4`; `ranges` is empty for `for tile in tiles` of a persistent grid."""

    var: str
    ranges: tuple[Range, ...]
    body: tuple[Statement, ...]
    down: bool = False
    unroll: int = 1  # how many iterations the loop's body holds in the kernel


@dataclass(frozen=True, slots=True)
class If(Statement):
    """`if cond`, the same for every thread of the role."""

    condition: Expr
    body: tuple[Statement, ...]
    orelse: tuple[Statement, ...] = ()


@dataclass(frozen=True, slots=True)
class Role(Statement):
    """`role consumer w = 0 : 2 registers 240`: warps that run their own statements beside the other roles."""

    name: str
    body: tuple[Statement, ...]
    var: str | None = None
    range: Range | None = None
    registers: Expr | None = None


@dataclass(frozen=True, slots=True)
class Wait(Statement):
    """`Wait K.full`, `Wait turn w`, `Wait gemm pending 1`, `Wait copies pending 0`."""

    kind: str  # "full", "empty", "turn", "gemm", "copies", "stores"
    ring: str | None = None
    count: Expr | None = None


@dataclass(frozen=True, slots=True)
class Release(Statement):
    """`Release K`: this role has read the slot for the last time."""

    ring: str


@dataclass(frozen=True, slots=True)
class PassTurn(Statement):
    """`Pass turn`: let the next role instance issue its GEMMs."""


@dataclass(frozen=True, slots=True)
class Commit(Statement):
    """`Commit`: the asynchronous copies since the last Commit form a group (an empty one counts too)."""


@dataclass(frozen=True, slots=True)
class Barrier(Statement):
    """`Barrier`: all threads of the block, or of the role, meet and see each other's writes to shared memory."""


@dataclass(frozen=True, slots=True)
class Fence(Statement):
    """`Fence async`: writes to shared memory become visible to the copy engine and the tensor cores."""

    kind: str


@dataclass(frozen=True, slots=True)
class Choice(Node):
    """One line of the Schedule block, as words; the rewriting of that name reads them."""

    words: tuple[str, ...]
    above: tuple[str, ...] = ()
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Define(Node):
    """A macro: `Define OnlineSoftmax S, O, m, l with c` and its statements."""

    name: str
    args: tuple[str, ...]
    params: tuple[str, ...]
    body: tuple[Statement, ...]
    above: tuple[str, ...] = ()
    comment: str = ""


@dataclass(frozen=True, slots=True)
class Kernel(Node):
    """One kernel: declarations and statements in order, and its Schedule where it has one.

    `name` is empty for a sketch or a fragment in the paper's form, which begins without a `Kernel` line.
    """

    name: str
    target: str | None
    body: tuple[Statement, ...]
    schedule: tuple[Choice, ...] = ()
    above: tuple[str, ...] = ()
    comment: str = ""
    schedule_comment: str = ""


@dataclass(frozen=True, slots=True)
class Program:
    """A TL file: macros and kernels; `below` are comment lines after the last statement."""

    kernels: tuple[Kernel, ...]
    defines: tuple[Define, ...] = ()
    below: tuple[str, ...] = ()
