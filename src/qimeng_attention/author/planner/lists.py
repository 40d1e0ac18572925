"""Programs whose tiles are listed before they are visited: masks that only their tensors decide.

Two small kernels in front of the attention look at every pair of a tile of queries and one of keys. What the mask hides
wholly is not in the list, and what it leaves whole stands behind what it cuts, so that the attention's loop splits into
one with a mask and one without. Clauses that interval analysis reads bound what is looked at.

Not here: which tile and schedule the attention takes (roles.py, warps.py), and how it is written but for its loop
(code.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from qimeng_attention.author.planner.code import Tiled, bounds, named_lines, write_code
from qimeng_attention.author.planner.reason import Reason
from qimeng_attention.author.planner.sketch import COLUMN_LIMIT, library_sketch, visible
from qimeng_attention.named_tensors import SIZES, kernel_name, own_sizes
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.intervals import undecided
from qimeng_attention.tl.parser import parse, parse_expression
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.traverse import map_blocks, names_in, num, substitute

LIBRARY = "lists"
ATTENTION = 2  # the kernel behind the two that list
ROWS = 16  # of both small kernels' tiles: one warp, and many blocks
# Of a tile's keys, each counted by a block: enough of them to fill a GPU at 8,192 tokens. Their counts meet without a
# loop, so that those of the next tiles are under way too.
_PARTS = ("seen", "second", "third", "fourth")
PARTS = len(_PARTS)
PLACES = 32  # of a list, made together
_LENGTH = "ceildiv(max(Sk, 1), BN * BJ) * BJ"  # of a list
UNROLLED = 8  # counts under way


def fits(spec: AttentionSpec) -> bool:
    """Tell whether only looking tells which tiles a mask hides: it reads a tensor, or has a clause that interval
    analysis cannot read. Packed sequences have no tensors of tokens, and keep their loops."""
    condition = visible(spec)
    return condition is not None and not spec.varlen and undecided(condition, {"q", "k"})


def compose_lists(spec: AttentionSpec, attention: s.Program) -> s.Program:
    """Compose the sketch of all kernels: the library's two, and an attention that visits what they list."""
    condition = visible(spec)
    assert condition is not None
    first, second = library_sketch(LIBRARY).kernels
    looked = {"visible": condition, "inside": COLUMN_LIMIT}
    first = replace(first, body=map_blocks(first.body, lambda n: substitute(n, looked)))
    attend = replace(attention.kernels[0], name="attend", body=map_blocks(attention.kernels[0].body, _visited))
    return replace(attention, kernels=(first, second, attend))


def _visited(n: s.Statement) -> s.Statement:
    """Let the loop count what is listed; only tiles that the mask cuts are masked."""
    match n:
        case s.For():
            return replace(n, var="j", ranges=(s.Range(num(0), s.Name("visited")),))
        case s.Mask():
            return s.If(s.Name("cut"), (n,))
    return n


def listed(spec: AttentionSpec, tiling: Tiled, schedule: Sequence[str]) -> list[str]:
    """Turn the lines of a Schedule to the loop over what is listed: which tiles need no mask is known there, and how
    many there are at most follows from the mask's bounds."""
    grows = "block" in names_in(bounds(spec, tiling).stop)
    order = ["grid block backwards  # later blocks may see more keys"] if grows else []
    lines: list[str] = []
    for line in schedule:
        if line.startswith("grid longest first"):
            lines += order
        elif not line.startswith("guard "):
            lines.append(line.replace("loop i", "loop j"))
    return lines


def reason() -> Reason:
    """Say why there are lists."""
    return Reason(
        "lists",
        "tiles of keys that a mask cuts, then those that it leaves whole",
        "only its tensors tell which tiles the mask hides: two small kernels look, and nothing hidden is visited",
        {"rows": ROWS, "places": PLACES},
    )


@dataclass(frozen=True)
class _Shared:
    """Who has a list of their own: each batch entry, each head, or all of them together one."""

    batch: bool
    head: bool

    @staticmethod
    def of(condition: s.Expr) -> _Shared:
        read = names_in(condition)
        return _Shared("batch" in read, "head" in read)

    @property
    def indices(self) -> str:
        return "batch, " * self.batch + "head, " * self.head

    @property
    def dims(self) -> str:
        return "B, " * self.batch + "Hq, " * self.head

    @property
    def grid(self) -> str:
        """Write the last index of a grid: three are all there are."""
        if self.batch and self.head:
            return ", entry = 0 : B * Hq"
        return ", batch = 0 : B" * self.batch + ", head = 0 : Hq" * self.head

    @property
    def lets(self) -> list[str]:
        return ["Let batch = entry // Hq", "Let head = entry % Hq"] if self.batch and self.head else []


def write_lists(
    spec: AttentionSpec, target: Target, sketch: s.Program, tiling: Tiled, why: str, schedule: Sequence[str]
) -> s.Program:
    """Write the code of the library's sketch `lists` for one tiling; arguments as of `write_code`."""
    condition = visible(spec)
    assert condition is not None
    shared = _Shared.of(condition)
    text = [*_classify_frame(spec, target, tiling, condition, shared), *_list_frame(spec, target, tiling, shared)]
    frames = parse("\n".join(text)).kernels
    steps = (
        lambda n: _classify_statement(n, shared),
        lambda n: _list_statement(n, shared),
    )
    before = [
        replace(frame, body=(*frame.body, *map_blocks(kernel.body, step)))
        for frame, kernel, step in zip(frames, sketch.kernels, steps, strict=False)
    ]
    whole = write_code(spec, target, replace(sketch, kernels=sketch.kernels[ATTENTION:]), tiling, why, schedule)
    return replace(whole, kernels=(*before, _visiting(whole.kernels[0], shared)))


# ------------------------------------------------------------------ the small kernels


def _sizes(spec: AttentionSpec, read: set[str]) -> list[str]:
    """Declare the sizes that a kernel reads."""
    names = [n for n in (*SIZES, *own_sizes(spec.tensors)) if n in read]
    fixed = [f"{n} = {getattr(spec, n)}" for n in ("B", "Sq", "Sk") if n in read and getattr(spec, n) is not None]
    free = [n for n in names if getattr(spec, n, None) is None or n in ("Hq", "Hk")]
    return [
        *([f"Size {', '.join(free)}  # arguments of each call"] if free else []),
        *([f"Size {', '.join(fixed)}"] if fixed else []),
    ]


def _tiles(t: Tiled, more: str, why: str) -> str:
    return f"Tile BM = {t.rows}, BN = {t.columns}, {more}  # {why}"


def _seen(shared: _Shared) -> str:
    return f"Allocate Seen in global ({shared.dims}ceildiv(Sq, BM), ceildiv(Sk, BN), {PARTS}) f32"


def _lists(shared: _Shared) -> list[str]:
    """Declare what the second kernel writes and the attention reads."""
    return [
        f"Allocate List in global ({shared.dims}ceildiv(Sq, BM), {_LENGTH}) i32",
        f"Allocate Cut in global ({shared.dims}ceildiv(Sq, BM)) i32  # tiles that the mask cuts: the first of a list",
        f"Allocate Visited in global ({shared.dims}ceildiv(Sq, BM)) i32  # all of its tiles",
    ]


def _classify_frame(spec: AttentionSpec, target: Target, t: Tiled, condition: s.Expr, shared: _Shared) -> list[str]:
    named = [(name, line) for name, line in named_lines(spec).items() if kernel_name(name) in names_in(condition)]
    dims = {str(d) for name, _ in named for d in spec.tensors[name].dims}
    read = names_in(condition) | dims | {"B", "Sq", "Sk"} | ({"Hq"} if shared.head else set())
    if "Hk" in read and spec.Hq == spec.Hk:  # one size for both
        read = read - {"Hk"} | {"Hq"}
    span = bounds(spec, t)
    return [
        *[f"# {line}" for line in spec.describe()],
        f"Kernel {spec.kernel_name}_classify for {target.name.lower()}",
        *_sizes(spec, read),
        _tiles(t, f"BI = {ROWS}, BP = {t.columns // PARTS}", "of the attention; a block counts BP keys of BI tiles"),
        f"Grid piece = 0 : ceildiv(Sk, BN * BI) * {PARTS}, block = 0 : ceildiv(Sq, BM){shared.grid}",
        *[f"Allocate {line}" for _, line in named],
        f"{_seen(shared)}  # pairs that the mask lets see",
        f"Let group = piece // {PARTS}",
        f"Let part = piece % {PARTS}",
        "Allocate pairs in register (BI tile = group * BI, BM q = block * BM) f32 = 0",
        "Allocate seen in register (BI tile = group * BI) f32 = 0",
        *shared.lets,
        f"Let first = {expression(span.start)}",
        f"Let last = {expression(span.stop)}",
        "Schedule",
        "    copies sync",
        "    warps 1 along tile",
        "",
    ]


def _classify_statement(n: s.Statement, shared: _Shared) -> s.Statement:
    n = substitute(n, {"k": parse_expression("tile * BN + part * BP + n")})
    match n:
        case s.Copy():
            return _placed(n, "BI", f"{shared.indices}block, tile = group * BI, part")
        case s.For():
            stop = parse_expression("where(first < (group + 1) * BI and group * BI < last, BP, 0)")
            return replace(n, ranges=(s.Range(num(0), stop),), comment="none where the mask's bounds hide all of them")
    return n


def _list_frame(spec: AttentionSpec, target: Target, t: Tiled, shared: _Shared) -> list[str]:
    vectors = ("cut", "visited", "next_cut")
    return [
        f"Kernel {spec.kernel_name}_list for {target.name.lower()}",
        *_sizes(spec, {"B", "Sq", "Sk"} | ({"Hq"} if shared.head else set())),
        _tiles(t, f"BR = {ROWS}, BJ = {PLACES}", "a block makes BJ places of BR lists"),
        "Grid column = 0 : ceildiv(max(Sk, 1), BN * BJ), row = 0 : ceildiv(Sq, BM * BR)" + shared.grid,
        _seen(shared),
        *_lists(shared),
        "Allocate list in register (BR block = row * BR, BJ place = column * BJ) f32 = 0",
        *[f"Allocate {name} in register (BR block = row * BR) f32 = 0" for name in vectors],
        *shared.lets,
        "Schedule",
        "    copies sync",
        f"    unroll loop i by {UNROLLED}  # so many tiles' counts are under way",
        "    warps 1 along block",
        "",
    ]


def _list_statement(n: s.Statement, shared: _Shared) -> s.Statement:
    whole = parse_expression("seen == BM * BN")  # rows past Sq count: they only cut a tile
    n = substitute(n, {"uncut": whole, "first": parse_expression("column == 0")})
    rows = "block = row * BR"
    part = _PARTS.index(n.to_name) if isinstance(n, s.Copy) and n.to_name in _PARTS else 0
    places = {
        "Seen": ("BR", f"{shared.indices}{rows}, i, {part}"),
        "list": ("BR, BJ", f"{shared.indices}{rows}, place = column * BJ"),
        "cut": ("BR", f"{shared.indices}{rows}"),
        "visited": ("BR", f"{shared.indices}{rows}"),
    }
    match n:
        case s.Copy():
            return _placed(n, *places[n.name])
        case s.For():
            return replace(n, ranges=(s.Range(num(0), parse_expression("ceildiv(Sk, BN)")),))
    return n


def _placed(n: s.Copy, dims: str, coordinate: str) -> s.Copy:
    """Give a Copy its shape and coordinate."""
    text = f"Copy {n.name} ({dims}) in coordinate [{coordinate}] from global to register\n"
    (placed,) = parse("Kernel x\n" + text).kernels[0].body
    assert isinstance(placed, s.Copy)
    return replace(n, dims=placed.dims, coordinate=placed.coordinate)


# ------------------------------------------------------------------ the attention


def _visiting(kernel: s.Kernel, shared: _Shared) -> s.Kernel:
    """Let the loop of a kernel visit the tiles of the block's list."""
    head = f"Kernel x\nTile BJ = {PLACES}  # places of a list are made so many at a time\n"
    ends = (
        f"Let visited = min(Visited[{shared.indices}block], {_LENGTH})\n"
        f"Let cut = min(Cut[{shared.indices}block], visited)\n"
    )
    tile, *declared = parse(head + "\n".join(_lists(shared)) + "\n" + ends).kernels[0].body
    allocates, lets = tuple(declared[:3]), tuple(declared[3:])
    # never negative: the lists are this program's own
    listed_tile = parse_expression(f"max(List[{shared.indices}block, j], 0)")
    body: list[s.Statement] = []
    for n in kernel.body:
        if isinstance(n, s.Grid):
            body.append(tile)
        if isinstance(n, s.Allocate) and n.name == "Out":
            body += allocates
        if isinstance(n, s.Copy) and n.name == "Q":
            body += lets
        body.append(_listed_loop(n, listed_tile) if isinstance(n, s.For) else n)
    return replace(kernel, body=tuple(body))


def _listed_loop(loop: s.For, tile: s.Expr) -> s.For:
    def visit(n: s.Statement) -> s.Statement:
        if isinstance(n, s.Copy):
            return substitute(n, {"i": tile})
        if isinstance(n, s.If):
            return replace(n, condition=parse_expression("j < cut"))
        return n

    return replace(loop, ranges=(s.Range(num(0), s.Name("visited")),), body=map_blocks(loop.body, visit))
