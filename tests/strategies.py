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


_all_values = st.recursive(_atoms, _values, max_leaves=8)
VALUES: st.SearchStrategy[s.Expr] = st.deferred(lambda: _all_values)


@st.composite
def comparisons(draw: st.DrawFn) -> s.Expr:
    """A chain of comparisons of values."""
    number = draw(st.integers(1, 3))
    signs = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
    return s.Compare(
        tuple(draw(VALUES) for _ in range(number + 1)), tuple(draw(signs) for _ in range(number))
    )


def _logical(inner: st.SearchStrategy[s.Expr]) -> st.SearchStrategy[s.Expr]:
    return st.one_of(
        st.builds(s.Unary, st.just("not"), inner),
        st.builds(s.Binary, st.sampled_from(["and", "or"]), inner, inner),
    )


CONDITIONS = st.recursive(comparisons(), _logical, max_leaves=5)
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
        s.Copy, NAMES, SPACES, SPACES, _dims, _coordinate, st.one_of(st.none(), NAMES), _optional,
        st.booleans(), st.none(), st.booleans(),
    )  # fmt: skip
    signalling = st.builds(
        lambda copy, ring: replace(copy, asynchronous=True, signals=ring), whole, st.just("K.full")
    )
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
_simple: st.SearchStrategy[s.Statement] = st.one_of(
    st.builds(s.Size, _sizes),
    _scalars(),
    st.builds(s.Tile, _tiles),
    _grids(),
    st.builds(s.Warps, VALUES, NAMES, _optional),
    st.builds(s.Let, NAMES, EXPRESSIONS),
    st.builds(
        s.Allocate, NAMES, SPACES, _dims, st.one_of(st.none(), TYPES), _optional, _optional, _optional,
        st.sampled_from([None, 32, 64, 128]), st.one_of(st.none(), NAMES), st.one_of(st.none(), NAMES),
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
)  # fmt: skip
SIMPLE: st.SearchStrategy[s.Statement] = st.deferred(lambda: _simple)  # named: its own repr is very long


def _commented(n: Any, above: list[str], comment: str) -> Any:
    return replace(n, above=tuple(a for a in above if a), comment=comment)


def _with_comments(n: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(_commented, n, st.lists(COMMENTS, max_size=2), COMMENTS)


def _blocks(inner: st.SearchStrategy[s.Statement]) -> st.SearchStrategy[s.Statement]:
    body = st.lists(inner, min_size=1, max_size=3).map(tuple)
    ranges = st.lists(_range, min_size=1, max_size=2).map(tuple)
    loops = st.builds(s.For, NAMES, ranges, body, st.booleans())
    tiles = st.builds(s.For, NAMES, st.just(()), body)
    branches = st.builds(s.If, CONDITIONS, body, st.one_of(st.just(()), body))
    plain_roles = st.builds(s.Role, NAMES, body, st.none(), st.none(), _optional)
    many_roles = st.builds(s.Role, NAMES, body, NAMES, _range, _optional)
    return _with_comments(st.one_of(loops, tiles, branches, plain_roles, many_roles))


STATEMENTS = st.recursive(_with_comments(SIMPLE), _blocks, max_leaves=5)

_words = st.sampled_from(["ring", "K", "stages", "2", "0.5", ",", "(", ")", ".", "split", "MMA_M", "<"])
_choices = st.builds(
    lambda first, rest, above, comment: _commented(s.Choice((first, *rest)), above, comment),
    st.sampled_from(["ring", "grid", "overlap"]), st.lists(_words, max_size=5), st.lists(COMMENTS, max_size=1), COMMENTS,
)  # fmt: skip
_defines = _with_comments(
    st.builds(
        s.Define, NAMES, st.lists(NAMES, min_size=1, max_size=3, unique=True).map(tuple),
        st.lists(NAMES, max_size=2).map(tuple), st.lists(_with_comments(SIMPLE), min_size=1, max_size=2).map(tuple),
    )
)  # fmt: skip


def _scheduled(kernel: s.Kernel, choices: list[s.Choice], comment: str) -> s.Kernel:
    return replace(kernel, schedule=tuple(choices), schedule_comment=comment if choices else "")


_kernel = st.builds(
    _scheduled,
    _with_comments(
        st.builds(
            s.Kernel, NAMES, st.one_of(st.none(), st.just("a100")), st.lists(STATEMENTS, min_size=1, max_size=4).map(tuple)
        )
    ),
    st.lists(_choices, max_size=2),
    COMMENTS,
)  # fmt: skip
_programs = st.builds(
    s.Program,
    st.lists(st.deferred(lambda: _kernel), min_size=1, max_size=2).map(tuple),
    st.lists(_defines, max_size=1).map(tuple),
    st.lists(COMMENTS.filter(bool), max_size=1).map(tuple),
)
PROGRAMS: st.SearchStrategy[s.Program] = st.deferred(lambda: _programs)
