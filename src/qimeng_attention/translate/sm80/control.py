"""Loops and branches."""

from __future__ import annotations

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import expressions, statements
from qimeng_attention.translate import names
from qimeng_attention.translate.sm80.context import Lowering, Lowerings, Refused
from qimeng_attention.translate.sm80.copy import nonnegative


def _for(n: s.For, low: Lowering) -> None:
    """A loop over one range counts its variable; over several it counts steps and finds the index of each."""
    var, out = names.variable(n.var), low.out
    if not n.ranges:
        raise Refused(n, "this generation's lowering has no persistent tiles", "remove `persistent`")
    ends = [(low.integer(r.start, n), low.integer(r.stop, n)) for r in n.ranges]
    out.line(f"#pragma unroll {n.unroll}")
    before, inside = set(low.declared), low.inside
    low.inside |= {(s.Name(n.var), dim) for dim in _indexed_dims(n, low) if _never_leaves(n, dim, low)}
    if len(ends) == 1:
        start, stop = ends[0]
        head = (
            f"for (int {var} = {stop} - 1; {var} >= {start}; --{var})"
            if n.down
            else f"for (int {var} = {start}; {var} < {stop}; ++{var})"
        )
        with out.block(head):
            low.body(n.body)
    else:
        counts = [f"tl::max(0, {b} - ({a}))" for a, b in ends]
        total = " + ".join(counts)
        with out.block(f"for (int {var}_step = 0; {var}_step < {total}; ++{var}_step)"):
            step = f"({total} - 1 - {var}_step)" if n.down else f"{var}_step"
            out.line(f"int const {var} = {_indexed(step, ends, counts)};")
            low.body(n.body)
    low.declared, low.inside = before, inside


def _indexed_dims(n: s.For, low: Lowering) -> set[s.Expr]:
    """Give the dimensions that a loop's body indexes by its variable."""
    read = (e for x in statements(n.body) for e in expressions(x) if isinstance(e, s.Index))
    pairs = ((i, d) for e in read for i, d in zip(e.indices, low.checked.tensors[e.tensor].dims, strict=True))
    return {d for i, d in pairs if i == s.Name(n.var)}


def _never_leaves(n: s.For, dim: s.Expr, low: Lowering) -> bool:
    """Tell whether a loop's variable is always an index within a dimension, by how its ends are written."""
    return all(nonnegative(r.start, low) and _at_most(r.stop, dim, low) for r in n.ranges)


def _at_most(e: s.Expr, dim: s.Expr, low: Lowering) -> bool:
    match e:
        case s.Call("min", args):
            return any(_at_most(a, dim, low) for a in args)
        case s.Name(id) if e != dim:
            made = [n.value for n in statements(low.checked.kernel.body) if isinstance(n, s.Let) and n.name == id]
            return bool(made) and all(_at_most(value, dim, low) for value in made)
    return e == dim


def _indexed(step: str, ends: list[tuple[str, str]], counts: list[str]) -> str:
    """Find the index of a step: in the first range that it has not passed."""
    text = ""
    passed = ""
    for (start, _), count in zip(ends[:-1], counts[:-1], strict=True):
        reached = f"{passed} + {count}" if passed else count
        offset = f"{step} - ({passed})" if passed else step
        text += f"{step} < {reached} ? {start} + {offset} : "
        passed = reached
    return f"{text}{ends[-1][0]} + {step} - ({passed})"


def _if(n: s.If, low: Lowering) -> None:
    before = set(low.declared)
    with low.out.block(f"if ({low.integer(n.condition, n)})"):
        low.body(n.body)
    low.declared = set(before)
    if n.orelse:
        with low.out.block("else"):
            low.body(n.orelse)
        low.declared = before


LOWERINGS: Lowerings = {"for": _for, "if": _if}
