"""Hypothesis strategies for TL: trees that the parser can make, and masks over a tile with what they depend on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hypothesis import strategies as st

from qimeng_attention.tl import syntax as s

NAMES = st.sampled_from(["Q", "K", "S", "O", "BM", "BN", "Sq", "scale", "block", "q_idx", "x_1", "D"])
TYPES = st.sampled_from(["f32", "bf16", "fp16", "e4m3", "i32"])
SPACES = st.sampled_from(["global", "shared", "register"])
COMMENTS = st.sampled_from(["", "", "", "why", "64 rows: one warp has 16", "a # in a comment", "é → 2 KB"])


# ------------------------------------------------------------------ expressions


def _negated(x: s.Expr) -> s.Expr:
    """What the parser makes of `-x`: a sign before a number is part of the number."""
    if isinstance(x, s.Num):
        return s.Num(-x.value) if x.value != 0 else s.Unary("-", x)
    return s.Unary("-", x)


_atoms: st.SearchStrategy[s.Expr] = st.one_of(
    st.integers(0, (1 << 62) - 1).map(s.Num),
    st.floats(0, 1e300, allow_nan=False).map(s.Num),
    NAMES.map(s.Name),
    st.builds(s.Scan, NAMES, NAMES, st.booleans(), st.booleans()),
)


def _values(inner: st.SearchStrategy[s.Expr]) -> st.SearchStrategy[s.Expr]:
    arguments = st.lists(inner, min_size=1, max_size=3).map(tuple)
    return st.one_of(
        inner.map(_negated),
        st.builds(s.Binary, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner, inner),
        st.builds(s.Call, st.sampled_from(["min", "exp2", "ceildiv", "anything"]), arguments),
        st.builds(s.Call, st.just("nothing"), st.just(())),
        st.builds(s.Index, NAMES, arguments),
    )


VALUES = st.recursive(_atoms, _values, max_leaves=6)


@st.composite
def comparisons(draw: st.DrawFn) -> s.Expr:
    """A chain of comparisons of values."""
    number = draw(st.integers(1, 3))
    signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    return s.Compare(tuple(draw(VALUES) for _ in range(number + 1)), tuple(draw(signs) for _ in range(number)))


def _logical(inner: st.SearchStrategy[s.Expr]) -> st.SearchStrategy[s.Expr]:
    return st.one_of(
        st.builds(s.Unary, st.just("not"), inner),
        st.builds(s.Binary, st.sampled_from(["and", "or"]), inner, inner),
    )


CONDITIONS = st.recursive(comparisons(), _logical, max_leaves=3)
EXPRESSIONS = st.one_of(VALUES, CONDITIONS)


# ------------------------------------------------------------------ statements

_optional = st.one_of(st.none(), VALUES)
_range = st.builds(s.Range, VALUES, VALUES)
_dims = st.lists(st.builds(s.Dim, VALUES, st.one_of(st.none(), NAMES)), min_size=1, max_size=3).map(tuple)
_index = st.builds(s.Coordinate, VALUES)
_start = st.builds(s.Coordinate, VALUES, NAMES, st.just(None), _optional)
_bounded = st.builds(s.Coordinate, VALUES, NAMES, VALUES, _optional)
_coordinate = st.lists(st.one_of(_index, _start, _bounded), min_size=1, max_size=4).map(tuple)
_origins = st.lists(st.tuples(NAMES, VALUES), max_size=2).map(tuple)
_operand = st.builds(s.Operand, NAMES, st.booleans(), st.one_of(st.none(), _range), _optional, _origins)
_roles = st.tuples(st.sampled_from(["MMA_A", "MMA_C"]), st.just("MMA_M"), st.just("MMA_N"))
_signals = st.one_of(st.none(), st.just("K.full"))


def _copies() -> st.SearchStrategy[s.Statement]:
    plain = st.builds(s.Copy, NAMES, SPACES, SPACES)
    whole = st.builds(
        s.Copy,
        NAMES,
        SPACES,
        SPACES,
        _dims,
        _coordinate,
        st.one_of(st.none(), NAMES),
        _optional,
        st.booleans(),
        st.none(),
        st.booleans(),
    )
    signalling = st.builds(lambda copy, ring: replace(copy, asynchronous=True, signals=ring), whole, st.just("K.full"))
    return st.one_of(plain, whole, signalling)


def _waits() -> st.SearchStrategy[s.Statement]:
    return st.one_of(
        st.builds(s.Wait, st.sampled_from(["full", "empty"]), NAMES),
        st.builds(s.Wait, st.sampled_from(["gemm", "copies", "stores", "turn"]), st.none(), VALUES),
    )


def _grids() -> st.SearchStrategy[s.Statement]:
    dim = st.builds(s.GridDim, NAMES, VALUES, VALUES, st.booleans())
    return st.builds(s.Grid, st.lists(dim, min_size=1, max_size=3).map(tuple), st.booleans())


def _scalars() -> st.SearchStrategy[s.Statement]:
    free = st.builds(s.Scalar, NAMES, TYPES)
    bound = st.builds(s.Scalar, NAMES, TYPES, st.sampled_from([">", ">=", "!="]), VALUES)
    return st.one_of(free, bound)


def _applies() -> st.SearchStrategy[s.Statement]:
    first = st.one_of(NAMES.map(s.Name), st.builds(s.Call, NAMES, st.tuples(VALUES)))
    arguments = st.builds(lambda a, more: (a, *more), first, st.lists(EXPRESSIONS, max_size=2))
    params = st.lists(EXPRESSIONS, max_size=2).map(tuple)
    quiet = st.builds(s.Apply, st.sampled_from(["OnlineSoftmax", "Multiply"]), arguments, params)
    giving = st.builds(s.Apply, st.just("Add"), arguments, params, NAMES, st.booleans())
    return st.one_of(quiet, giving)


_sizes = st.lists(st.tuples(NAMES, _optional), min_size=1, max_size=3).map(tuple)
_tiles = st.lists(st.tuples(NAMES, VALUES), min_size=1, max_size=2).map(tuple)
_SIMPLE: list[st.SearchStrategy[s.Statement]] = [
    st.builds(s.Size, _sizes),
    _scalars(),
    st.builds(s.Tile, _tiles),
    _grids(),
    st.builds(s.Warps, VALUES, NAMES, _optional),
    st.builds(s.Let, NAMES, EXPRESSIONS),
    st.builds(
        s.Allocate,
        NAMES,
        SPACES,
        _dims,
        st.one_of(st.none(), TYPES),
        _optional,
        _optional,
        _optional,
        st.sampled_from([None, 32, 64, 128]),
        st.one_of(st.none(), NAMES),
        st.one_of(st.none(), NAMES),
    ),
    _copies(),
    st.builds(s.Gemm, _operand, _operand, NAMES, st.booleans(), st.booleans()),
    st.builds(s.Mask, NAMES, CONDITIONS, _optional),
    st.builds(s.Compute, EXPRESSIONS, NAMES, st.booleans()),
    _applies(),
    st.builds(s.Reshape, NAMES, _roles, _roles, st.one_of(st.none(), TYPES), st.one_of(st.none(), NAMES)),
    _waits(),
    st.builds(s.Release, NAMES),
    st.just(s.PassTurn()),
    st.just(s.Commit()),
    st.just(s.Barrier()),
    st.just(s.Fence("async")),
]


def _commented(draw: st.DrawFn, n: Any) -> Any:
    above = draw(st.lists(COMMENTS.filter(bool), max_size=2))
    return replace(n, above=tuple(above), comment=draw(COMMENTS))


@st.composite
def statements(draw: st.DrawFn, depth: int = 2) -> s.Statement:
    """A statement, with comments; blocks nest `depth` deep."""
    kind = draw(st.integers(0, 9))
    if depth == 0 or kind < 6:
        return _commented(draw, draw(_SIMPLE[draw(st.integers(0, len(_SIMPLE) - 1))]))  # type: ignore[no-any-return]

    def body() -> tuple[s.Statement, ...]:
        return tuple(draw(st.lists(statements(depth - 1), min_size=1, max_size=2)))

    if kind == 6:
        ranges = draw(st.lists(_range, min_size=1, max_size=2))
        return _commented(draw, s.For(draw(NAMES), tuple(ranges), body(), draw(st.booleans())))  # type: ignore[no-any-return]
    if kind == 7:
        return _commented(draw, s.For(draw(NAMES), (), body()))  # type: ignore[no-any-return]
    if kind == 8:
        orelse = body() if draw(st.booleans()) else ()
        return _commented(draw, s.If(draw(CONDITIONS), body(), orelse))  # type: ignore[no-any-return]
    many = draw(st.booleans())
    var, span = (draw(NAMES), draw(_range)) if many else (None, None)
    return _commented(draw, s.Role(draw(NAMES), body(), var, span, draw(_optional)))  # type: ignore[no-any-return]


@st.composite
def choices(draw: st.DrawFn) -> s.Choice:
    """A line of a Schedule block; no rewriting need know it."""
    words = st.sampled_from(["ring", "K", "stages", "2", "0.5", ",", "(", ")", ".", "split", "MMA_M", "<"])
    first = draw(st.sampled_from(["ring", "grid", "overlap"]))
    return _commented(draw, s.Choice((first, *draw(st.lists(words, max_size=5)))))  # type: ignore[no-any-return]


@st.composite
def programs(draw: st.DrawFn) -> s.Program:
    """A program as the parser makes it: one or two kernels, perhaps a macro."""
    defines = []
    if draw(st.booleans()):
        args = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
        params = draw(st.lists(NAMES, max_size=2))
        defines = [_commented(draw, s.Define(draw(NAMES), tuple(args), tuple(params), (draw(statements(0)),)))]
    kernels = []
    for _ in range(draw(st.integers(1, 2))):
        body = tuple(draw(st.lists(statements(), min_size=1, max_size=3)))
        kernel = _commented(draw, s.Kernel(draw(NAMES), draw(st.sampled_from([None, "a100"])), body))
        schedule = tuple(draw(st.lists(choices(), max_size=2)))
        kernels.append(replace(kernel, schedule=schedule, schedule_comment=draw(COMMENTS) if schedule else ""))
    below = tuple(draw(st.lists(COMMENTS.filter(bool), max_size=1)))
    return s.Program(tuple(kernels), tuple(defines), below)
