"""Programs for few queries: keys split over blocks, heads of a group as rows, and a kernel that weighs the parts.

Such calls are bound by memory: K and V are read once, at the rate of the device, if all multiprocessors read all the
time. So each key head's group is one tile of rows, whatever its size, and there are so many splits that the
multiprocessors' shares come out even.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qimeng_attention import caches
from qimeng_attention.author.planner.code import reshaped
from qimeng_attention.author.planner.keys import keys_of
from qimeng_attention.author.planner.model import carries
from qimeng_attention.author.planner.reason import Reason
from qimeng_attention.author.planner.recurrence import Recurrence
from qimeng_attention.author.planner.sketch import lengths, visible
from qimeng_attention.author.planner.widths import MMA_STEP, row_elements
from qimeng_attention.errors import SpecError
from qimeng_attention.named_tensors import kernel_name, own_sizes
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.intervals import any_true
from qimeng_attention.tl.parser import parse, parse_expression
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.traverse import call, map_blocks, mul, num, substitute, words_in

MOST_QUERIES = 16  # of a call: each reads K and V anew, so that more are better taken as the rows of a tile
ROWS = 64  # of the split kernel's tile: wgmma's m, or 16 for each of four warps
COLUMNS = {True: 128, False: 64}  # keys of a tile: with wgmma up to head dim 128, else
CARRIED_COLUMNS = {True: 32, False: 16}  # where they pass through registers: up to head dim 128, above
FEW_ROWS = 32  # where threads copy from a cache, and a group fits: half the warps, and more blocks an SM
MOST_STAGES = 4
MOST_BLOCKS = 3  # of few rows on an SM: what lies in flight already fills its share of the memory's latency
COMBINED_ROWS, COMBINED_COLUMNS = 16, 32  # of the second kernel's tile: one warp, and many blocks
UNROLLED = 8  # parts that the second kernel has on their way
LEAST_TILES = 4  # of a split: its ends cost about one
BARRIER_BYTES = 512


# What a sketch calls heads and queries: rows of the tile, and the block's one query.
_NAMES: dict[str, s.Expr] = {"head": s.Name("h"), "q": s.Name("t"), "Hq": parse_expression("Hk * G")}


@dataclass(frozen=True)
class Split:
    """The tile of the split kernel, and the stages of its rings."""

    columns: int
    stages: int
    shared_bytes: int
    rows: int = ROWS
    blocks: int = 1  # on an SM


def fits(spec: AttentionSpec) -> bool:
    """Tell whether a specification is one of few queries."""
    whole = spec.Dqk % MMA_STEP == 0 and spec.Dv % COMBINED_COLUMNS == 0
    return spec.Sq is not None and spec.Sq <= MOST_QUERIES and spec.Hq // spec.Hk <= ROWS and whole


def refuse_other_caches(spec: AttentionSpec) -> None:
    """Refuse lengths of entries, and pages, where the programs for few queries do not serve.

    Raises:
        SpecError: too many queries, head dims or groups that those programs do not take.
    """
    if not spec.seqused_k or fits(spec):
        return
    what = "page_size" if spec.page_size is not None else "seqused_k"
    needed = {
        "Sq": (spec.Sq if spec.Sq is not None else "any", f"from 1 to {MOST_QUERIES}", spec.Sq or MOST_QUERIES + 1),
        "Hq": (spec.Hq, f"at most {ROWS} times Hk", spec.Hq // spec.Hk),
        "Dqk": (spec.Dqk, f"a multiple of {MMA_STEP}", spec.Dqk % MMA_STEP),
        "Dv": (spec.Dv, f"a multiple of {COMBINED_COLUMNS}", spec.Dv % COMBINED_COLUMNS),
    }
    most = {"Sq": MOST_QUERIES, "Hq": ROWS, "Dqk": 0, "Dv": 0}
    field = next(name for name, (_, _, found) in needed.items() if found > most[name])
    value, allowed, _ = needed[field]
    raise SpecError(
        f"{what} is for calls of few queries, with {field} {allowed}: found {field} = {value}",
        hint=f"give {field} {allowed}, or leave {what} out",
        field=field,
        value=getattr(spec, field),
        allowed=[allowed],
    )


def by_roles(spec: AttentionSpec, target: Target) -> bool:
    """Tell whether the copy engine serves: threads copy keys that end within a tile, or lie in pages."""
    return "wgmma" in target.capabilities and not spec.seqused_k


def split_tile(spec: AttentionSpec, target: Target) -> Split:
    """Choose the tile: as many keys under way as shared memory holds, up to four tiles."""
    if spec.seqused_k and not carries(target) and spec.Hq // spec.Hk <= FEW_ROWS:
        return _cached_tile(spec, target)
    narrow = max(spec.Dqk, spec.Dv) <= 128
    columns = CARRIED_COLUMNS[narrow] if carries(target) else COLUMNS[by_roles(spec, target) and narrow]
    qk, v = row_elements(spec.Dqk), row_elements(spec.Dv)
    queries = 2 * ROWS * qk * (2 if by_roles(spec, target) else 1)
    stage = 2 * columns * (qk + v)
    room = target.shared_per_block_bytes - queries - BARRIER_BYTES
    stages = 1 if carries(target) else max(1, min(MOST_STAGES, room // stage))
    return Split(columns, stages, queries + stages * stage)


def _cached_tile(spec: AttentionSpec, target: Target) -> Split:
    """Choose a tile of few rows: two tiles of keys on their way in each of several blocks, else as many as fit in one.

    Warps without rows of their own would multiply as the others do, and wait for the same tiles.
    """
    columns, qk, v = COLUMNS[False], row_elements(spec.Dqk), row_elements(spec.Dv)
    queries, stage = 2 * FEW_ROWS * qk, 2 * columns * (qk + v)
    two = queries + 2 * stage
    blocks = min(MOST_BLOCKS, target.shared_per_sm_bytes // (two + target.shared_reserved_bytes))
    if blocks > 1:
        return Split(columns, 2, two, FEW_ROWS, blocks)
    stages = max(1, min(MOST_STAGES, (target.shared_per_block_bytes - queries - BARRIER_BYTES) // stage))
    return Split(columns, stages, queries + stages * stage, FEW_ROWS)


def choose(
    spec: AttentionSpec, target: Target, loop: Recurrence, fast: Sequence[str] = ()
) -> tuple[Split, list[Reason], list[str], list[str]]:
    """Give the tile, the reasons (the tile's first) and the lines of both Schedule blocks."""
    tile = split_tile(spec, target)
    reasons = _reasons(spec, target, tile)
    why = {r.parameter: r.why for r in reasons}
    k, split = tile.stages, [f"approximate {f}" for f in fast]
    if by_roles(spec, target):
        split += [
            f"ring K stages {k}, V stages {k}  # {why['ring']}",
            *(["sums per lane"] if loop.sums else []),
            "guard Mask of loop i where it is all true",
            "roles producer (24 registers), consumer (1 along h, 240 registers)",
            "ahead Q stages 2",
            f"overlap GEMM P, V of the previous tile with the {'exponentials' if loop.sums else 'weights'} of this one",
            "unswitch loop i",
            f"grid persistent by counter  # {why['grid']}",
        ]
    elif carries(target):
        split += [
            f"ring K stages 1, V stages 1  # {why['ring']}",
            "prefetch K 1 ahead",
            "copies sync",
            "guard Mask of loop i where it is all true",
            "carry K, V through register",
            f"warps 4 along h, 1 blocks an SM  # {why['grid']}",
        ]
    else:
        split += [
            f"ring K stages {k}, V stages {k}  # {why['ring']}",
            f"prefetch K {k} ahead, V {k - 1} ahead" if k > 1 else "prefetch K 1 ahead, V 0 ahead",
            "copies async",
            "guard Mask of loop i where it is all true",
            f"warps {tile.rows // 16} along h, {tile.blocks} blocks an SM  # {why['grid']}",
        ]
    return tile, reasons, split, [f"unroll loop part by {UNROLLED}  # {why['combine']}", "warps 1 along h"]


def _reasons(spec: AttentionSpec, target: Target, t: Split) -> list[Reason]:
    group = spec.Hq // spec.Hk
    moved = 2 * t.columns * (spec.Dqk + spec.Dv)
    memory = moved * target.sms * target.clock_mhz * 1e6 / target.bandwidth_bytes_per_s
    tensor = 2 * t.rows * t.columns * (spec.Dqk + spec.Dv) / target.tensor_flops_per_clock
    figures: dict[str, float | str] = {
        "memory": round(memory, 1),
        "tensor": round(tensor, 1),
        "bound": "memory" if memory > tensor else "tensor cores",
        "model": "author/planner/decode.py",
        "kind": "prediction",
    }
    return [
        Reason(
            "tile",
            f"BM = {t.rows}, BN = {t.columns}",
            f"{group} head(s) share a key head and are the rows; a tile of keys takes {memory:.0f} clocks to read and "
            f"{tensor:.0f} to multiply (predicted)",
            figures,
        ),
        Reason(
            "splits",
            "Splits",
            f"fewer key heads than the {target.sms} multiprocessors: a part for each of those; more: enough parts for "
            "even shares"
            if t.blocks == 1
            else f"room for {target.sms * t.blocks} blocks: with fewer key heads a part for each, else parts for even "
            "shares",
            {"multiprocessors": target.sms},
        ),
        Reason(
            "ring",
            f"K stages {t.stages}, V stages {t.stages}",
            f"{t.shared_bytes / 1024:.0f} KB of shared memory: {t.stages} tile(s) on their way"
            + (f" in each of {t.blocks} blocks" if t.blocks > 1 else ""),
            {"shared_bytes": t.shared_bytes},
        ),
        Reason("grid", "key heads first", "neighbours read neighbouring heads of the same keys", {}),
        Reason("combine", f"unroll {UNROLLED}", "parts are loaded before the ones before them are weighed", {}),
    ]


# ------------------------------------------------------------------ code


def write_decode(
    spec: AttentionSpec,
    target: Target,
    sketch: s.Program,
    tile: Split,
    why: Mapping[str, str],
    schedules: tuple[Sequence[str], Sequence[str]],
) -> s.Program:
    """Write the code of a sketch for few queries: two kernels.

    Args:
        spec: with few queries.
        target: the GPU the program is for.
        sketch: the composed sketch.
        tile: of the split kernel.
        why: the reasons by parameter.
        schedules: the lines of both Schedule blocks.
    """
    split, combine = sketch.kernels
    frames = [
        *_mentioned(_split_frame(spec, target, tile, why, schedules[0]), split),
        *_mentioned(_combine_frame(spec, target, schedules[1]), combine),
    ]
    first, second = parse("\n".join(frames)).kernels
    body = map_blocks(split.body, lambda n: _split_statement(substitute(n, _NAMES), spec))
    weighed = map_blocks(combine.body, lambda n: substitute(n, _NAMES))
    return s.Program(
        (
            replace(first, body=(*first.body, *reshaped(body, spec))),
            replace(second, body=(*second.body, *map_blocks(weighed, lambda n: _combine_statement(n, spec)))),
        ),
        sketch.defines,
        sketch.below,
    )


def _mentioned(frame: Sequence[str], kernel: s.Kernel) -> list[str]:
    """Leave out declarations of tensors and tiles that a sketch's kernel does not mention."""
    words = words_in(kernel.body) | {caches.LENGTHS, caches.TABLE}  # these stand in lets and coordinates
    return [line for line in frame if not line.startswith("Allocate ") or line.split()[1] in words]


def _named(spec: AttentionSpec) -> list[str]:
    """Declare the named tensors."""
    dims = {n: ", ".join("Hk * G" if d == "Hq" else str(d) for d in x.dims) for n, x in spec.tensors.items()}
    return [f"Allocate {kernel_name(n)} in global ({dims[n]}) {x.dtype}" for n, x in spec.tensors.items()]


def _sizes(spec: AttentionSpec, names: Sequence[str], dims: Sequence[str]) -> list[str]:
    free = [n for n in names if getattr(spec, n, None) is None]
    fixed = [f"{n} = {getattr(spec, n)}" for n in names if n not in free]
    heads = f"G = {spec.Hq // spec.Hk}"
    return [
        f"Size {', '.join([*free, 'Hk', 'Splits'])}  # arguments of each call",
        f"Size {', '.join([*fixed, heads, *dims])}  # G query heads share a key head",
    ]


def _dims(spec: AttentionSpec) -> tuple[str, str]:
    return ("D", "D") if spec.Dqk == spec.Dv else ("Dqk", "Dv")


def _split_frame(
    spec: AttentionSpec, target: Target, t: Split, why: Mapping[str, str], schedule: Sequence[str]
) -> list[str]:
    qk, v = _dims(spec)
    first, last = _bounds(spec, t)
    keys, widths = keys_of(spec), sorted({f"{qk} = {spec.Dqk}", f"{v} = {spec.Dv}"})
    slots = target.sms * t.blocks
    even = f"max({slots} // max(B * Sq * Hk, 1), min(4, B * Sq * Hk // {slots // 4 + 1}))"
    return [
        *[f"# {line}" for line in spec.describe()],
        f"Kernel {spec.kernel_name}_split for {target.name.lower()}",
        *_sizes(spec, ("B", "Sq", *keys.sizes, *own_sizes(spec.tensors)), [*keys.fixed, *widths]),
        f"Scalar scale f32{' > 0' if spec.scale_sign == 'positive' else ''}",
        f"Tile BM = {t.rows}, BN = {t.columns}  # {why['tile']}",
        f"Choose Splits = clamp({even}, 1, ceildiv({caches.capacity(spec)}, {LEAST_TILES} * BN))  # {why['splits']}",
        "Grid row = 0 : Sq * Hk, split = 0 : Splits, batch = 0 : B",
        f"Allocate Q in global (B, Sq, Hk * G, {qk}) {spec.dtype}",
        f"Allocate K in global ({keys.dims}, Hk, {qk}) {spec.dtype}",
        f"Allocate V in global ({keys.dims}, Hk, {v}) {spec.dtype}",
        *keys.allocated,
        *_named(spec),
        f"Allocate Part in global (B, Sq, Splits, Hk * G, {v}) f32",
        "Allocate PartLse in global (B, Sq, Splits, Hk * G) f32",
        "Allocate S in register (BM h, BN k) f32",
        f"Allocate O in register (BM h, {v}) f32 = 0",
        "Allocate m in register (BM h) f32 = -inf",
        "Allocate l in register (BM h) f32 = 0",
        "Let group = row % Hk",
        "Let t = row // Hk",
        *keys.lets,
        f"Let first = {first}",
        f"Let last = {last}",
        "Let share = ceildiv(max(last - first, 0), Splits)",
        "Schedule",
        *[f"    {line}" for line in schedule],
        "",
    ]


def _bounds(spec: AttentionSpec, t: Split) -> tuple[str, str]:
    """Write the tiles of keys in which a query may see one."""
    condition, group = visible(spec), spec.Hq // spec.Hk
    end = substitute(call("ceildiv", s.Name("Sk"), s.Name("BN")), lengths(spec))
    if condition is None:
        return "0", expression(end)
    origins: dict[str, s.Expr] = {
        "k": mul(s.Name("i"), s.Name("BN")),
        "h": mul(s.Name("group"), s.Name("G")),
    }
    extents: dict[str, s.Expr] = {"k": s.Name("BN"), "h": s.Name("G")}
    stretch = any_true(substitute(condition, _NAMES), origins, extents, "i", {"BN": t.columns, "G": group})
    start = num(0) if stretch.start is None else call("max", num(0), stretch.start)
    stop = end if stretch.stop is None else call("min", end, stretch.stop)
    return expression(start), expression(stop)


def _combine_frame(spec: AttentionSpec, target: Target, schedule: Sequence[str]) -> list[str]:
    _, v = _dims(spec)
    lse = ["Allocate Lse in global (B, Hk * G, Sq) f32"] if "LSE" in spec.outputs else []
    return [
        f"Kernel {spec.kernel_name}_combine for {target.name.lower()}",
        *_sizes(spec, ("B", "Sq"), (f"{v} = {spec.Dv}",)),
        f"Tile BM = {COMBINED_ROWS}, BC = {COMBINED_COLUMNS}",
        f"Grid column = 0 : {v} // BC, row = 0 : ceildiv(Hk * G, BM) * Sq, batch = 0 : B",
        f"Allocate Part in global (B, Sq, Splits, Hk * G, {v}) f32",
        "Allocate PartLse in global (B, Sq, Splits, Hk * G) f32",
        *_named(spec),
        f"Allocate Out in global (B, Sq, Hk * G, {v}) {spec.dtype}",
        *lse,
        "Allocate O in register (BM h, BC d) f32 = 0",
        "Allocate m in register (BM h) f32 = -inf",
        "Allocate l in register (BM h) f32 = 0",
        "Let heads = row % ceildiv(Hk * G, BM)",
        "Let t = row // ceildiv(Hk * G, BM)",
        "Schedule",
        *[f"    {line}" for line in schedule],
        "",
    ]


_GROUP = "h = group * G : (group + 1) * G"
_SPLIT_PLACES = {  # of the tile that is moved: its extents and its coordinate
    "Q": ("BM, {qk}", f"batch, t, {_GROUP}"),
    "K": ("BN, {qk}", "{keys}, group"),
    "V": ("BN, {v}", "{keys}, group"),
    "O": ("BM, {v}", f"batch, t, split, {_GROUP}"),
    "lse": ("BM", f"batch, t, split, {_GROUP}"),
}
_COMBINE_PLACES = {
    "Part": ("BM, BC", "batch, t, part, h = heads * BM, d = column * BC"),
    "PartLse": ("BM", "batch, t, part, h = heads * BM"),
    "O": ("BM, BC", "batch, t, h = heads * BM, d = column * BC"),
    "total": ("BM", "batch, h = heads * BM, t"),
}


def _placed(n: s.Copy, places: Mapping[str, tuple[str, str]], spec: AttentionSpec) -> s.Copy:
    """Give a Copy its shape and coordinate."""
    qk, v = _dims(spec)
    dims, coordinate = places[n.name]
    where = coordinate.format(keys=keys_of(spec).place)
    text = f"Copy {n.name} ({dims.format(qk=qk, v=v)}) in coordinate [{where}] from global to shared\n"
    (placed,) = parse("Kernel x\n" + text).kernels[0].body
    assert isinstance(placed, s.Copy)
    return replace(n, dims=placed.dims, coordinate=placed.coordinate)


def _split_statement(n: s.Statement, spec: AttentionSpec) -> s.Statement:
    if isinstance(n, s.Copy):
        return _placed(n, _SPLIT_PLACES, spec)
    if isinstance(n, s.For):
        start = parse_expression("first + split * share")
        return replace(n, ranges=(s.Range(start, parse_expression("min(first + (split + 1) * share, last)")),))
    return n


def _combine_statement(n: s.Statement, spec: AttentionSpec) -> s.Statement | None:
    if isinstance(n, s.Copy):
        return _placed(n, _COMBINE_PLACES, spec)
    if isinstance(n, s.For):
        return replace(n, ranges=(s.Range(num(0), s.Name("Splits")),))
    if isinstance(n, s.If):
        return replace(n, condition=parse_expression("column == 0")) if "LSE" in spec.outputs else None
    return n
