"""The second step of authoring: from sketch to TL code, with every parameter in it and its reason beside it.

Generic over the sketch: each Copy gets shape and coordinate from the tensor it moves, each tile an Allocate whose
initial
value follows from how the loop updates it, each loop its bounds from the mask, and a Reshape stands between fused
GEMMs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from qimeng_attention.author.planner.lengths import lengths_of
from qimeng_attention.author.planner.sketch import visible
from qimeng_attention.author.planner.widths import tile_line, widths
from qimeng_attention.named_tensors import kernel_name, own_sizes
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.intervals import any_true
from qimeng_attention.tl.macros import expand
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.traverse import call, map_blocks, mul, names_in, num, statements, substitute

_OPERAND = "P"  # what a result is called once it is an operand


class Tiled(Protocol):
    """What the code needs of a tiling."""

    @property
    def rows(self) -> int: ...  # noqa: D102
    @property
    def columns(self) -> int: ...  # noqa: D102


def write_code(
    spec: AttentionSpec, target: Target, sketch: s.Program, tiling: Tiled, why: str, schedule: Sequence[str]
) -> s.Program:
    """Write the code of a sketch for one tiling.

    Args:
        spec: sizes and mask.
        target: the GPU the program is for.
        sketch: the composed sketch.
        tiling: the tile sizes chosen.
        why: the reason for them, put beside them as a comment.
        schedule: the lines of the Schedule block, each with its reason.
    """
    kernel = sketch.kernels[0]
    frame = parse(_frame(spec, target, tiling, why, schedule)).kernels[0]
    body = map_blocks(kernel.body, lambda n: _elaborated(n, spec, tiling))
    body = reshaped(body, spec)
    shapes = _register_tiles(kernel, spec)
    before = [*frame.body, *[_allocate(name, dims, kernel, sketch) for name, dims in shapes]]
    before += lengths_of(spec).lets
    if _grouped(spec):
        group = s.Binary("//", s.Name("head"), s.Binary("//", s.Name("Hq"), s.Name("Hk")))
        before.append(s.Let("head_k", group, comment=f"{spec.Hq // spec.Hk} query heads share a key head"))
    made = replace(frame, body=(*before, *body))
    return s.Program((made,), sketch.defines, sketch.below)


# ------------------------------------------------------------------ declarations and schedule


def _frame(spec: AttentionSpec, target: Target, t: Tiled, why: str, schedule: Sequence[str]) -> str:
    lie = lengths_of(spec)
    free = [n for n in lie.sizes if getattr(spec, n, None) is None] + ["Hq", *(["Hk"] if _grouped(spec) else [])]
    free += own_sizes(spec.tensors)
    fixed = [f"{n} = {getattr(spec, n)}" for n in lie.sizes if getattr(spec, n, None) is not None]
    dims = dict.fromkeys(widths(spec))
    fixed += [f"{w.size} = {w.elements}" for w in dims]
    heads_k = "Hk" if _grouped(spec) else "Hq"
    bound = " > 0" if spec.scale_sign == "positive" else ""
    qk, v = (w.size for w in widths(spec))
    keys = lie.keys.format(heads=heads_k)
    lse = [f"Allocate Lse in global ({lie.lse}) f32"] if "LSE" in spec.outputs else []
    lines = [
        *[f"# {line}" for line in spec.describe()],
        f"Kernel {spec.kernel_name} for {target.name.lower()}",
        f"Size {', '.join(free)}  # arguments of each call",
        f"Size {', '.join(fixed)}",
        f"Scalar scale f32{bound}",
        f"Tile BM = {t.rows}, BN = {t.columns}  # {why}",
        *[tile_line(w) for w in dims if not w.whole],
        f"Grid {lie.grid}",
        f"Allocate Q in global ({lie.queries}, {qk}) {spec.dtype}",
        f"Allocate K in global ({keys}, {qk}) {spec.dtype}",
        f"Allocate V in global ({keys}, {v}) {spec.dtype}",
        *[f"Allocate {line}" for line in (*lie.tensors, *named_lines(spec).values())],
        f"Allocate Out in global ({lie.queries}, {v}) {spec.dtype}",
        *lse,
        "Schedule",
        *[f"    {line}" for line in schedule],
    ]
    return "\n".join(lines) + "\n"


def named_lines(spec: AttentionSpec) -> dict[str, str]:
    """Declare the named tensors, `Slopes in global (Hq) f32`, by their names in the specification."""
    lines = {}
    for name, tensor in spec.tensors.items():
        dims = ["Hq" if d == "Hk" and not _grouped(spec) else str(d) for d in tensor.dims]
        lines[name] = f"{kernel_name(name)} in global ({', '.join(dims)}) {tensor.dtype}"
    return lines


def _grouped(spec: AttentionSpec) -> bool:
    """Tell whether several query heads share a key head; else the key heads are the query heads."""
    return spec.Hq != spec.Hk


# ------------------------------------------------------------------ statements


def _elaborated(n: s.Statement, spec: AttentionSpec, t: Tiled) -> s.Statement:
    if isinstance(n, s.Copy):
        return _placed(n, spec)
    if isinstance(n, s.For):
        return replace(n, ranges=(bounds(spec, t),))
    return n


def _placed(n: s.Copy, spec: AttentionSpec) -> s.Copy:
    """Give a Copy its shape and coordinate, from the tensor it moves."""
    (qk, v), lie = widths(spec), lengths_of(spec)
    batch = (s.Coordinate(s.Name("batch")),) if lie.batched else ()
    head = s.Coordinate(s.Name("head"))
    head_k = s.Coordinate(s.Name("head_k")) if _grouped(spec) else head
    rows, keys = lie.rows(), lie.columns()
    m, k = s.Dim(s.Name("BM")), s.Dim(s.Name("BN"))
    table = {
        "Q": ((m, qk.dim), (*batch, rows, head, *qk.coordinate)),
        "K": ((k, qk.dim), (*batch, keys, head_k, *qk.coordinate)),
        "V": ((k, v.dim), (*batch, keys, head_k, *v.coordinate)),
        "O": ((m, v.dim), (*batch, rows, head, *v.coordinate)),
        "lse": ((m,), (*batch, head, rows)),
    }
    dims, coordinate = table[n.name]
    return replace(n, dims=dims, coordinate=coordinate)


def bounds(spec: AttentionSpec, t: Tiled) -> s.Range:
    """Visit just the tiles in which some row of the block may see a key."""
    end: s.Expr = call("ceildiv", s.Name("Sk"), s.Name("BN"))
    condition = visible(spec)
    if condition is None:
        return s.Range(num(0), end)
    origins = {"q": mul(s.Name("block"), s.Name("BM")), "k": mul(s.Name("i"), s.Name("BN"))}
    stretch = any_true(condition, origins, {"q": s.Name("BM"), "k": s.Name("BN")}, "i", {"BM": t.rows, "BN": t.columns})
    start = num(0) if stretch.start is None else call("max", num(0), stretch.start)
    stop = end if stretch.stop is None else call("min", end, stretch.stop)
    return s.Range(start, stop)


def reshaped(body: tuple[s.Statement, ...], spec: AttentionSpec) -> tuple[s.Statement, ...]:
    """Put a Reshape before each GEMM whose first operand is the result of another."""
    results = {n.out for n in statements(body) if isinstance(n, s.Gemm)}

    def visit(n: s.Statement) -> s.Statement | tuple[s.Statement, ...]:
        if not isinstance(n, s.Gemm) or n.a.name not in results:
            return n
        source, target = ("MMA_C", "MMA_M", "MMA_N"), ("MMA_A", "MMA_M", "MMA_N_new")
        reshape = s.Reshape(n.a.name, source, target, spec.dtype, _OPERAND)
        return reshape, replace(n, a=replace(n.a, name=_OPERAND))

    return map_blocks(body, visit)


# ------------------------------------------------------------------ register tiles


def _register_tiles(kernel: s.Kernel, spec: AttentionSpec) -> list[tuple[str, tuple[s.Dim, ...]]]:
    """Give the tiles that the loop carries or that GEMM makes, with their shapes."""
    rows, keys = s.Dim(s.Name("BM"), "q"), s.Dim(s.Name("BN"), "k")
    shapes: dict[str, tuple[s.Dim, ...]] = {}
    for n in statements(kernel.body):
        if isinstance(n, s.Gemm):
            shapes[n.out] = (rows, keys) if n.b.transposed else (rows, widths(spec)[1].register_dim)
    for n in statements(kernel.body):
        if isinstance(n, s.Apply):
            for a in n.args:
                if isinstance(a, s.Name):
                    shapes.setdefault(a.id, (rows,))
    return list(shapes.items())


def _allocate(name: str, dims: tuple[s.Dim, ...], kernel: s.Kernel, sketch: s.Program) -> s.Allocate:
    return s.Allocate(name, "register", dims, "f32", _initial(name, kernel, sketch))


def _initial(name: str, kernel: s.Kernel, sketch: s.Program) -> s.Expr | None:
    """Find the neutral element of how a loop updates a tile: 0 for sums and products, -inf for maxima; none if it
    is made anew."""
    expanded, _ = expand(kernel, sketch.defines)
    loop = next(n for n in expanded.body if isinstance(n, s.For))
    made: dict[str, s.Expr] = {}
    for n in statements(loop.body):
        if isinstance(n, s.Gemm) and n.out == name:
            return num(0) if n.accumulate else None
        if isinstance(n, s.Compute):
            value = substitute(n.value, {k: v for k, v in made.items() if k != name})
            if n.out == name and name in names_in(value):
                return _neutral(value, name)
            made[n.out] = value
    return None


def _neutral(value: s.Expr, name: str) -> s.Expr:
    if isinstance(value, s.Call) and value.function == "max" and s.Name(name) in value.args:
        return s.Unary("-", s.Name("inf"))
    if isinstance(value, s.Call) and value.function == "min" and s.Name(name) in value.args:
        return s.Name("inf")
    return num(0)
