"""Conditions under which a program's masks leave an element of a tile: what coverage takes for needed.

Masks of one tile that stand behind each other, with the same fill, are one Mask with `and`: what the first hides stays
hidden. `Compute where(cond, S, -inf) and get new S` is a Mask too, and so is `where(cond, P, 0)` where P becomes the
operand of a product next. `Compute S and get W` gives W what hides S, also behind `exp2(S - m)`, which makes 0 of the
-inf, and behind a product with what is 0.

Not here: which rows and indices are looked at (coverage.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import reduce

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.traverse import names_in, statements

NEVER = "-inf"  # the fill of a plain Mask
_EXPONENTIALS = ("exp", "exp2", "exp2_fma")  # 0 at -inf


@dataclass(frozen=True, slots=True)
class Hiding:
    """A statement that hides: of which tile, where not, and with what."""

    tile: str
    condition: s.Expr
    fill: str
    written: bool  # as a Mask; not as a where
    under: str = ""  # the condition of the `if` it stands in: two under the same one are skipped together
    afresh: bool = False  # the tile is made of other tiles here: what was hidden in it before is gone


def hiding(body: tuple[s.Statement, ...], axis: str) -> list[list[Hiding]]:
    """Give what hides along an axis, a group for each place where masks stand; within a group both must leave it.

    Where there are Masks, a where only narrows them; where there is none, each where counts.
    """
    groups = [[h for h in chain if axis in names_in(h.condition)] for chain in _chains(body, _positive(body))]
    masked = [group for group in groups if any(h.written for h in group)]
    return masked or [group for group in groups if group]


def both(group: list[Hiding]) -> s.Expr:
    """Give the condition under which none of a group hides an element."""
    always: s.Expr = s.Compare((s.Num(0), s.Num(0)), ("==",))
    return reduce(lambda a, b: s.Binary("and", a, b), [h.condition for h in group], always)


def _positive(body: tuple[s.Statement, ...]) -> frozenset[str]:
    """Name the numbers that are more than 0 in every call: constants, and scalars that the launcher finds so."""
    scalars = (n for n in body if isinstance(n, s.Scalar))
    found = {n.name for n in scalars if n.op == ">" and isinstance(n.bound, s.Num) and n.bound.value >= 0}
    return frozenset(found | {"log2e", "ln2"})


def _chains(body: tuple[s.Statement, ...], positive: frozenset[str]) -> list[list[Hiding]]:
    """Give what hides, grouped: each group hides the same elements as one Mask would."""
    found: list[list[Hiding]] = []
    open_: dict[str, list[Hiding]] = {}
    for place, n in enumerate(body):
        hidings = _hidings(n, body[place + 1 :])
        kept = _kept(n, open_, positive)
        if kept:
            open_[kept[0].tile] = kept  # the masks themselves are in `found`; these only wait for the next one
            continue
        if hidings is None:
            for name in _written(n):
                open_.pop(name, None)
            for inner in _blocks(n):
                found += _chains(inner, positive)
            continue
        for h in hidings:
            chain = open_.get(h.tile)
            if chain is None or h.afresh or (chain[-1].fill, chain[-1].under) != (h.fill, h.under):
                chain = open_[h.tile] = []
            if not any(chain is known for known in found):
                found.append(chain)
            chain.append(h)
    return found


def _kept(n: s.Statement, open_: dict[str, list[Hiding]], positive: frozenset[str]) -> list[Hiding]:
    """Give what still hides in the tile that a Compute makes of a hidden one: a copy, exponentials or a product."""
    if not isinstance(n, s.Compute):
        return []
    if isinstance(n.value, s.Name):
        return [replace(h, tile=n.out) for h in open_.get(n.value.id, ())]
    chain = open_.get(n.out, [])
    if chain and chain[-1].fill == NEVER and _exponential_of(n.value, n.out, positive):
        return [replace(h, fill="0") for h in chain]
    if chain and chain[-1].fill == "0" and _product_of(n.value, n.out):
        return list(chain)
    return []


def _product_of(value: s.Expr, tile: str) -> bool:
    """Tell whether a value is a product that has a tile as a factor: where that is 0, so is the product."""
    if isinstance(value, s.Binary) and value.op == "*":
        return any(side == s.Name(tile) or _product_of(side, tile) for side in (value.left, value.right))
    return False


def _exponential_of(value: s.Expr, tile: str, positive: frozenset[str]) -> bool:
    """Tell whether a value is exp2 of a tile, times or minus what lacks it: `exp2(S * c - m * c)`."""
    match value:
        case s.Call(function, (s.Binary("-", exponent, less),)) if function in _EXPONENTIALS:
            return tile not in names_in(less) and _multiple(exponent, tile, positive)
        case s.Call(function, (exponent,)) if function in _EXPONENTIALS:
            return _multiple(exponent, tile, positive)
    return False


def _multiple(e: s.Expr, tile: str, positive: frozenset[str]) -> bool:
    """Tell whether a value is a tile times what is more than 0: where the tile is -inf, so is the value."""
    if isinstance(e, s.Binary) and e.op == "*":
        return any(
            _multiple(a, tile, positive) and _is_positive(b, positive)
            for a, b in ((e.left, e.right), (e.right, e.left))
        )
    return e == s.Name(tile)


def _is_positive(e: s.Expr, positive: frozenset[str]) -> bool:
    match e:
        case s.Name(id):
            return id in positive
        case s.Num(value):
            return value > 0
        case s.Binary("*" | "/", a, b):
            return _is_positive(a, positive) and _is_positive(b, positive)
    return False


def _blocks(n: s.Statement) -> Iterator[tuple[s.Statement, ...]]:
    if isinstance(n, s.For | s.If | s.Role):
        yield n.body
    if isinstance(n, s.If):
        yield n.orelse


def _hidings(n: s.Statement, after: tuple[s.Statement, ...]) -> list[Hiding] | None:
    """Read a statement as what hides; None where it is something else."""
    if isinstance(n, s.Mask):
        return [Hiding(n.tile, n.condition, NEVER if n.fill is None else expression(n.fill), True)]
    if isinstance(n, s.If) and n.body and not n.orelse and all(isinstance(x, s.Mask) for x in n.body):
        return [replace(h, under=expression(n.condition)) for x in n.body for h in _hidings(x, ()) or ()]
    if isinstance(n, s.Compute) and isinstance(n.value, s.Call) and n.value.function == "where":
        return _where(n, n.value, after)
    return None


def _where(n: s.Compute, value: s.Call, after: tuple[s.Statement, ...]) -> list[Hiding] | None:
    condition, taken, other = value.args
    for kept, fill, where in ((taken, other, condition), (other, taken, s.Unary("not", condition))):
        word = expression(fill)
        if word == NEVER or (word in ("0", "0.0") and _is_operand(n.out, after)):
            return [Hiding(n.out, where, word, False, afresh=kept != s.Name(n.out))]
    return None


def _is_operand(tile: str, after: tuple[s.Statement, ...]) -> bool:
    """Tell whether a tile's next use is to become the operand of a product: a 0 in it then is a weight of 0."""
    for n in after:
        if isinstance(n, s.Reshape) and n.name == tile:
            return True
        if tile in names_in(n) or tile in _written(n) or any(tile in names_in(x) for x in statements((n,))):
            return False
    return False


def _written(n: s.Statement) -> set[str]:
    """Name what a statement, or one within it, may write."""
    return {
        name
        for x in statements((n,))
        for field in ("out", "tile", "name")
        if isinstance(name := getattr(x, field, None), str)
    }
