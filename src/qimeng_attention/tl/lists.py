"""Lists of blocks (rule 8): an index of -1 in a list skips the iteration. Written out as `if` before anything else
looks.

A list is an element of a tensor that the loop's variable picks and that says where a Copy starts, directly or through a
Let: `Copy K (BN, D) in coordinate [batch, k = Idx[batch, j] * BN]` in a loop over j. An element behind `at` is no list:
it says where in memory a tile lies, not which tile it is. Nor is one that is held at 0 or above, `max(Idx[j], 0)`: such
a list marks no place as empty, and every iteration runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import compare, expressions, map_blocks, names_in, num, statements


def write_out_lists(kernel: s.Kernel) -> s.Kernel:
    """Guard what stands behind the first use of a list element by `if element >= 0`."""
    return replace(kernel, body=map_blocks(kernel.body, lambda n: _guarded(n) if isinstance(n, s.For) else n))


def _guarded(loop: s.For) -> s.For:
    lets = {n.name: n.value for n in loop.body if isinstance(n, s.Let) and isinstance(n.value, s.Index)}
    for position, n in enumerate(loop.body):
        found = next(_elements(n, loop.var, lets), None)
        if found is not None:
            rest = s.If(compare(found, ">=", num(0)), loop.body[position:], span=n.span)
            return replace(loop, body=(*loop.body[:position], rest))
    return loop


def _elements(n: s.Statement, var: str, lets: Mapping[str, s.Expr]) -> Iterator[s.Expr]:
    """Give the list elements that the copies of a statement start at, but for those that it guards itself."""
    asked = {e for x in statements((n,)) if isinstance(x, s.If) for e in expressions(x.condition)}
    for x in statements((n,)):
        if not isinstance(x, s.Copy) or x.source != "global":
            continue
        for e in (e for c in x.coordinate for e in _signed(c.start)):
            element = lets.get(e.id) if isinstance(e, s.Name) else e
            if isinstance(element, s.Index) and var in names_in(element.indices) and e not in asked:
                yield e


def _signed(e: s.Expr) -> Iterator[s.Expr]:
    """Give the expressions inside of one that may hand a -1 through."""
    match e:
        case s.Call("max", args) if s.Num(0) in args:
            return
        case s.Binary(_, a, b):
            yield e
            yield from _signed(a)
            yield from _signed(b)
        case _:
            yield from expressions(e)
