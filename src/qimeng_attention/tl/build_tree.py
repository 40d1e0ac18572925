"""From Lark's parse tree of one line to nodes of the syntax tree.

Not here: blocks and recovery from errors (parser.py).
"""

from __future__ import annotations

from typing import Any, cast

from lark import Token, Transformer, Tree, v_args

from qimeng_attention.errors import Span
from qimeng_attention.tl import syntax as s

MOST = 1 << 62  # integers are 64 bits wide, with room for one addition


class BadNumber(ValueError):
    """A literal that no type of TL holds, and its columns."""

    def __init__(self, text: str, meta: Any) -> None:
        shown = text if len(text) <= 24 else f"{text[:20]}..."
        super().__init__(f"the number {shown} is too large, expected less than 2^62, or a finite floating value")
        self.column, self.end_column = meta.column, meta.end_column


@v_args(meta=True)
class LineBuilder(Transformer[Token, Any]):
    """Turn the parse tree of one line into statements, or into the open head of a block (with an empty body)."""

    def __init__(self, line_number: int) -> None:
        super().__init__()
        self._line = line_number

    def _span(self, meta: Any) -> Span:
        if getattr(meta, "empty", True):
            return Span(self._line, 1, 1)
        return Span(self._line, meta.column, meta.end_column)

    # -------------------------------------------------------------- expressions
    def integer(self, meta: Any, c: list[Any]) -> s.Expr:
        if len(c[0]) > 20 or int(c[0]) >= MOST:
            raise BadNumber(str(c[0]), meta)
        return s.Num(int(c[0]), span=self._span(meta))

    def floating(self, meta: Any, c: list[Any]) -> s.Expr:
        if float(c[0]) == float("inf"):
            raise BadNumber(str(c[0]), meta)
        return s.Num(float(c[0]), span=self._span(meta))

    def name(self, meta: Any, c: list[Any]) -> s.Expr:
        return s.Name(str(c[0]), span=self._span(meta))

    def call(self, meta: Any, c: list[Any]) -> s.Expr:
        return s.Call(str(c[0]), tuple(x for x in c[1:] if x is not None), span=self._span(meta))

    def element(self, meta: Any, c: list[Any]) -> s.Expr:
        return s.Index(str(c[0]), tuple(c[1:]), span=self._span(meta))

    def scan(self, meta: Any, c: list[Any]) -> s.Expr:
        return s.Scan(str(c[0]), str(c[1]), c[2] is not None, c[3] is not None, span=self._span(meta))

    def binary(self, meta: Any, c: list[Any]) -> s.Expr:
        return s.Binary(str(c[1]), c[0], c[2], span=self._span(meta))

    def sign(self, meta: Any, c: list[Any]) -> s.Expr:
        operand = cast(s.Expr, c[1])
        if str(c[0]) == "+":
            return operand
        if isinstance(operand, s.Num) and operand.value != 0:
            return s.Num(-operand.value, span=self._span(meta))
        return s.Unary("-", operand, span=self._span(meta))

    def negate(self, meta: Any, c: list[Any]) -> s.Expr:
        return s.Unary("not", c[0], span=self._span(meta))

    def comparison(self, meta: Any, c: list[Any]) -> s.Expr:
        return s.Compare(tuple(c[0::2]), tuple(str(op) for op in c[1::2]), span=self._span(meta))

    def _fold(self, op: str, meta: Any, c: list[Any]) -> s.Expr:
        left = cast(s.Expr, c[0])
        for right in c[1:]:
            left = s.Binary(op, left, right, span=self._span(meta))
        return left

    def conjunction(self, meta: Any, c: list[Any]) -> s.Expr:
        return self._fold("and", meta, c)

    def disjunction(self, meta: Any, c: list[Any]) -> s.Expr:
        return self._fold("or", meta, c)

    # -------------------------------------------------------------- parts
    def dim(self, meta: Any, c: list[Any]) -> s.Dim:
        return s.Dim(c[0], None if c[1] is None else str(c[1]), c[2])

    def dims(self, meta: Any, c: list[Any]) -> tuple[s.Dim, ...]:
        return tuple(d for d in c if d is not None)

    def range(self, meta: Any, c: list[Any]) -> s.Range:
        return s.Range(c[0], c[1])

    def names(self, meta: Any, c: list[Any]) -> tuple[str, ...]:
        return tuple(str(n) for n in c)

    def params(self, meta: Any, c: list[Any]) -> tuple[s.Expr, ...]:
        return tuple(c)

    def roles(self, meta: Any, c: list[Any]) -> tuple[str, ...]:
        return tuple(str(n) for n in c)

    def index(self, meta: Any, c: list[Any]) -> s.Coordinate:
        return s.Coordinate(c[0])

    def start(self, meta: Any, c: list[Any]) -> s.Coordinate:
        return s.Coordinate(c[1], str(c[0]), at=c[2])

    def bounded(self, meta: Any, c: list[Any]) -> s.Coordinate:
        return s.Coordinate(c[1], str(c[0]), stop=c[2], at=c[3])

    def origin(self, meta: Any, c: list[Any]) -> tuple[str, s.Expr]:
        return str(c[0]), c[1]

    def operand(self, meta: Any, c: list[Any]) -> s.Operand:
        name, rows, transposed, slot, *at = c
        origins = tuple(a for a in at if a is not None)
        return s.Operand(str(name), transposed is not None, rows, slot, origins, span=self._span(meta))

    # -------------------------------------------------------------- declarations
    def size_entry(self, meta: Any, c: list[Any]) -> tuple[str, s.Expr | None]:
        return str(c[0]), c[1]

    def tile_entry(self, meta: Any, c: list[Any]) -> tuple[str, s.Expr]:
        return str(c[0]), c[1]

    def size(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Size(tuple(c), span=self._span(meta))

    def tile(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Tile(tuple(c), span=self._span(meta))

    def scalar(self, meta: Any, c: list[Any]) -> s.Statement:
        op = None if c[2] is None else str(c[2])
        return s.Scalar(str(c[0]), str(c[1]), op, c[3], span=self._span(meta))

    def grid_dim(self, meta: Any, c: list[Any]) -> s.GridDim:
        return s.GridDim(str(c[0]), c[1].start, c[1].stop, c[2] is not None)

    def grid(self, meta: Any, c: list[Any]) -> s.Statement:
        dims = tuple(d for d in c if isinstance(d, s.GridDim))
        said = [x.type for x in c if isinstance(x, Token)]
        return s.Grid(dims, "PERSISTENT" in said, "BY_COUNTER" in said, span=self._span(meta))

    def warps(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Warps(c[0], str(c[1]), c[2], span=self._span(meta))

    def choose(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Choose(str(c[0]), c[1], span=self._span(meta))

    def let(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Let(str(c[0]), c[1], span=self._span(meta))

    def find(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Find(str(c[0]), c[1], c[2], span=self._span(meta))

    def allocate(self, meta: Any, c: list[Any]) -> s.Statement:
        name, space, dims, dtype, init, *options = c
        extra: dict[str, Any] = {}
        for option in options:
            key, value = option.data, option.children[0]
            if key == "swizzle" and len(value) > 9:
                raise BadNumber(str(value), value)
            extra[key] = (
                int(value) if key == "swizzle" else str(value) if key in ("view", "over", "contiguous") else value
            )
        dtype = None if dtype is None else str(dtype)
        return s.Allocate(str(name), str(space), dims, dtype, init, span=self._span(meta), **extra)

    # -------------------------------------------------------------- moving and computing
    def copy(self, meta: Any, c: list[Any]) -> s.Statement:
        name, dims, rest = c[0], c[1] or (), c[2:]
        coordinate = tuple(x for x in rest if isinstance(x, s.Coordinate))
        spaces = [str(x) for x in rest if isinstance(x, Token) and x.type == "SPACE"]
        to_name = next((str(x) for x in rest if isinstance(x, Token) and x.type == "NAME"), None)
        options = {str(x.data): x.children for x in rest if isinstance(x, Tree)}
        signals = options.get("async_copy", [None, None])
        return s.Copy(
            str(name),
            spaces[0],
            spaces[1],
            dims,
            coordinate,
            to_name,
            slot=cast(Any, options["slot"][0]) if "slot" in options else None,
            asynchronous="async_copy" in options,
            signals=None if signals[0] is None else f"{signals[0]}.{signals[1]}",
            accumulate="accumulate" in options,
            span=self._span(meta),
        )

    def gemm(self, meta: Any, c: list[Any]) -> s.Statement:
        a, b, mode, out, flag = c
        return s.Gemm(a, b, str(out), mode.type == "AND_ACCUMULATE", flag is not None, span=self._span(meta))

    def mask(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Mask(str(c[0]), c[1], c[2], span=self._span(meta))

    def compute(self, meta: Any, c: list[Any]) -> s.Statement:
        value, _, new, out = c
        return s.Compute(value, str(out), new is not None, span=self._span(meta))

    def apply(self, meta: Any, c: list[Any]) -> s.Statement:
        operator, out, new, params = str(c[0]), None, False, ()
        *args, given, get, flag, name = c[1:]
        if given is not None:
            params = given
        if get is not None:
            out, new = str(name), flag is not None
        return s.Apply(operator, tuple(args), params, out, new, span=self._span(meta))

    def reshape(self, meta: Any, c: list[Any]) -> s.Statement:
        name, source, target, dtype, _, out = c
        dtype, out = (None if x is None else str(x) for x in (dtype, out))
        return s.Reshape(str(name), source, target, dtype, out, span=self._span(meta))

    # -------------------------------------------------------------- scheduled code
    def wait_ring(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Wait(str(c[1]), str(c[0]), span=self._span(meta))

    def wait_turn(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Wait("turn", None, c[0], span=self._span(meta))

    def wait_pending(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Wait(str(c[0]), None, c[1], span=self._span(meta))

    def release(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Release(str(c[0]), span=self._span(meta))

    def pass_turn(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.PassTurn(span=self._span(meta))

    def commit(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Commit(span=self._span(meta))

    def barrier(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Barrier(span=self._span(meta))

    def fence(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.Fence(str(c[0]), span=self._span(meta))

    # -------------------------------------------------------------- heads of blocks
    def for_head(self, meta: Any, c: list[Any]) -> s.Statement:
        ranges = tuple(r for r in c[1:] if isinstance(r, s.Range))
        marks = [r for r in c[1:] if isinstance(r, Token)]
        unroll = next((int(r) for r in marks if r.type == "INT"), 1)
        return s.For(str(c[0]), ranges, (), any(r.type == "DOWN" for r in marks), unroll, span=self._span(meta))

    def tiles_head(self, meta: Any, c: list[Any]) -> s.Statement:
        return s.For(str(c[0]), (), (), span=self._span(meta))

    def if_head(self, meta: Any, c: list[Any]) -> s.Statement:
        body = tuple(x for x in c[1:] if x is not None)
        return s.If(c[0], body, span=self._span(meta))

    def else_head(self, meta: Any, c: list[Any]) -> str:
        return "else"

    def end(self, meta: Any, c: list[Any]) -> str:
        return "end"

    def schedule_head(self, meta: Any, c: list[Any]) -> str:
        return "schedule"

    def role_head(self, meta: Any, c: list[Any]) -> s.Statement:
        name, var, span_of, registers = c
        var = None if var is None else str(var)
        return s.Role(str(name), (), var, span_of, registers, span=self._span(meta))

    def define_head(self, meta: Any, c: list[Any]) -> s.Define:
        return s.Define(str(c[0]), c[1], c[2] or (), (), span=self._span(meta))

    def kernel_head(self, meta: Any, c: list[Any]) -> s.Kernel:
        return s.Kernel(str(c[0]), None if c[1] is None else str(c[1]), (), span=self._span(meta))

    def choice(self, meta: Any, c: list[Any]) -> s.Choice:
        return s.Choice(tuple(str(w) for w in c), span=self._span(meta))

    def expression(self, meta: Any, c: list[Any]) -> s.Expr:
        return cast(s.Expr, c[0])

    def line(self, meta: Any, c: list[Any]) -> list[Any]:
        return c
