"""`threshold 8`: a row keeps its old maximum until the new one is 2^8 larger in its exponentials (approximate).

The factor by which the accumulator is scaled is then 1 for most rows of most tiles, and a warp whose rows all have it
leaves the accumulator alone. Weights grow up to 2^8 instead of 1; sums and LSE use the same maximum, so that nothing
needs a correction at the end. Matched by what depends on what: `n = max(m, RowMax(S))`, a factor
`a = exp2(m * c - ...)`, `m = n`, and tiles `T = T * a`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, number, unfit, with_body
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import (
    call,
    compare,
    expressions,
    map_blocks,
    map_expressions,
    mul,
    names_in,
    num,
    statements,
    sub,
)
from qimeng_attention.tl.types import Checked

FORM = "threshold NUMBER"
MOST = {"fp16": 12, "bf16": 64}  # of the type of the weights: 2^12 times 8 keys are under fp16's largest value


@dataclass(frozen=True)
class _Row:
    """A running row maximum: the old one, the new one, its factor and what scores are multiplied with in exponents."""

    old: str
    new: str
    factor: str
    c: s.Expr


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Keep old maxima in every loop that has a running one."""
    if len(choice.words) != 2:
        raise malformed(choice, FORM)
    most = number(choice.words[1], choice, FORM)
    dtypes = {t.dtype for t in checked.tiles.values() if t.role == "MMA_A"} & set(MOST)
    limit = min((MOST[d] for d in dtypes), default=min(MOST.values()))
    if most > limit:
        raise unfit(
            choice, f"weights of 2^{most} are too large for {' and '.join(sorted(dtypes))}", f"take {limit} or less"
        )
    found = False

    def kept(n: s.Statement) -> s.Statement:
        nonlocal found
        row = _row(n.body) if isinstance(n, s.For) and n.ranges else None
        if row is None or not isinstance(n, s.For):
            return n
        _only_there(row, n, kernel, checked, choice)
        found = True
        return replace(n, body=map_blocks(n.body, lambda x: _kept(x, row, most, checked)))

    body = map_blocks(kernel.body, kept)
    if not found:
        raise unfit(choice, "no loop keeps a running row maximum", "remove this choice")
    return with_body(kernel, body)


def _kept(n: s.Statement, row: _Row, most: int, checked: Checked) -> s.Statement | tuple[s.Statement, ...]:
    if _is_maximum(n, row):
        old, new = s.Name(row.old), s.Name(row.new)
        grown = compare(mul(sub(new, old), row.c), ">", num(most))
        return n, s.Compute(
            call("where", grown, new, old), row.new, new=True, comment=f"until it is 2^{most} too small"
        )
    if isinstance(n, s.Compute) and _scales(n, row) and len(checked.tiles[n.out].axes) == 2:
        return replace(n, value=call("where", compare(s.Name(row.factor), "!=", num(1)), n.value, s.Name(n.out)))
    return n


def _is_maximum(n: s.Statement, row: _Row) -> bool:
    match n:
        case s.Compute(s.Call("max", (s.Name(old), s.Call("RowMax", _))), out):
            return (old, out) == (row.old, row.new)
    return False


def _scales(n: s.Compute, row: _Row) -> bool:
    return n.value == mul(s.Name(n.out), s.Name(row.factor))


def _row(body: tuple[s.Statement, ...]) -> _Row | None:
    """Find the running maximum of a loop's body; none if there are several, or the exponents do not fit it."""
    computed = [n for n in statements(body) if isinstance(n, s.Compute)]
    rows = []
    for n in computed:
        match n.value:
            case s.Call("max", (s.Name(old), s.Call("RowMax", _))):
                safe = {n.out} | {x.out for x in computed if _guards(x, n.out)}
                factors = [(x.out, c) for x in computed if (c := _exponent(x.value, old, safe)) is not None]
                if len(factors) == 1 and any(x.out == old and x.value == s.Name(n.out) for x in computed):
                    rows.append(_Row(old, n.out, *factors[0]))
    return rows[0] if len(rows) == 1 else None


def _guards(n: s.Compute, new: str) -> bool:
    """Match `where(new == -inf, 0, new)`."""
    return isinstance(n.value, s.Call) and n.value.function == "where" and n.value.args[1:] == (s.Num(0), s.Name(new))


def _is_exponent(e: s.Expr, tiles: set[str], safe: set[str], c: s.Expr) -> bool:
    return any(_exponent(e, t, safe) == c for t in tiles)


def _exponent(e: s.Expr, base: str, safe: set[str]) -> s.Expr | None:
    """Match `exp2(base * c - m * c)` with m the new maximum, and give c."""
    match e:
        case s.Call("exp2" | "exp2_fma", (s.Binary("-", s.Binary("*", s.Name(x), c), s.Binary("*", s.Name(m), d)),)):
            return c if x == base and m in safe and c == d else None
    return None


def _only_there(row: _Row, loop: s.For, kernel: s.Kernel, checked: Checked, choice: s.Choice) -> None:
    """See that another maximum gives the same result.

    Exponents with one factor may read it, and what is computed with the sum's logarithm; its factor may only multiply
    tiles that the loop carries.
    """
    inside = list(statements(loop.body))
    computed = [n for n in inside if isinstance(n, s.Compute)]
    safe = {row.new} | {n.out for n in computed if _guards(n, row.new)}
    tiles = {row.old, *(n.out for n in computed)}
    overwritten = {n.out for n in inside if isinstance(n, s.Gemm) and not n.accumulate}
    for n in computed:
        reads = names_in(n.value)
        rest = names_in(map_expressions(n.value, lambda e: s.Num(0) if _is_exponent(e, tiles, safe, row.c) else e))
        whole = _is_maximum(n, row) or _guards(n, row.new) or n.value == s.Name(row.new)
        if rest & {row.old, *safe} and not whole:
            raise _other(n, choice)
        scaled = [e for e in expressions(n.value) if e == mul(s.Name(n.out), s.Name(row.factor))]
        if row.factor in reads and (not scaled or n.out in overwritten):
            raise _other(n, choice)
    ids = {id(n) for n in inside}
    for x in statements(kernel.body):
        outside = isinstance(x, s.Compute) and id(x) not in ids and names_in(x.value) & {row.old, *safe}
        if outside and isinstance(x, s.Compute) and not _beside_logarithm(x):
            raise _other(x, choice)


def _beside_logarithm(n: s.Compute) -> bool:
    return any(isinstance(e, s.Call) and e.function in ("ln", "log2") for e in expressions(n.value))


def _other(n: s.Compute, choice: s.Choice) -> Exception:
    from qimeng_attention.tl.printer import head

    return unfit(choice, f"`{head(n)}` would see the maximum that is kept", "remove this choice")


REWRITING = Rewriting(
    "threshold",
    FORM,
    "threshold 8",
    "Scales the accumulator only where a row's maximum has grown by more than 2^8 in its exponentials.",
    "approximate",
    apply,
)
