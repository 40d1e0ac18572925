"""Walking and rewriting trees: the few helpers that the checker, the rewritings and the planner share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass, replace
from functools import cache
from typing import Any, TypeVar

from qimeng_attention.errors import Span
from qimeng_attention.tl import syntax as s

T = TypeVar("T")
_EXPRESSIONS = (s.Num, s.Name, s.Unary, s.Binary, s.Compare, s.Call, s.Index, s.Scan)


def statements(body: tuple[s.Statement, ...]) -> Iterator[s.Statement]:
    """Give every statement, outer before inner, in order."""
    for n in body:
        yield n
        if isinstance(n, s.For | s.If | s.Role):
            yield from statements(n.body)
        if isinstance(n, s.If):
            yield from statements(n.orelse)


@cache
def _parts(kind: Any) -> tuple[str, ...] | None:
    """Name what may hold expressions in a kind of node, last first; None for what is no node."""
    if not is_dataclass(kind):
        return None
    return tuple(reversed([f.name for f in fields(kind) if f.name not in ("span", "body", "orelse")]))


def expressions(node: Any) -> Iterator[s.Expr]:
    """Give every expression inside a node, outer before inner; bodies of blocks are left out."""
    left = [node]
    while left:  # NOTE: no recursion: the interpreter asks this of each statement that it runs
        x = left.pop()
        kind: Any = type(x)
        if isinstance(x, tuple):
            left.extend(reversed(x))
        elif (parts := _parts(kind)) is not None:
            if isinstance(x, _EXPRESSIONS):
                yield x
            left.extend([getattr(x, part) for part in parts])


def depth(node: Any) -> int:
    """Give the depth of the deepest expression in a node, without recursion; bodies of blocks count too."""
    deepest, level = 0, [node]
    count = 0
    while level:
        below: list[Any] = []
        expression = False
        for x in level:
            if isinstance(x, tuple | list):
                below.extend(x)
            elif is_dataclass(x):
                expression = expression or isinstance(x, _EXPRESSIONS)
                below.extend(getattr(x, f.name) for f in fields(x) if f.name != "span")
        count += expression
        deepest, level = max(deepest, count), below
    return deepest


def names_in(node: Any) -> set[str]:
    """Give every name that the expressions of a node read; named tensors and scanned tiles too."""
    found = set()
    for e in expressions(node):
        if isinstance(e, s.Name):
            found.add(e.id)
        elif isinstance(e, s.Index):
            found.add(e.tensor)
        elif isinstance(e, s.Scan):
            found.add(e.tile)
    return found


def words_in(node: Any) -> set[str]:
    """Give every word in a tree: whatever a new name could be mistaken for."""
    if isinstance(node, str):
        return {node}
    parts: list[Any] = []
    if isinstance(node, tuple):
        parts = list(node)
    elif is_dataclass(node):
        parts = [getattr(node, f.name) for f in fields(node) if f.name not in ("span", "above", "comment")]
    return set().union(*[words_in(x) for x in parts])


def map_expressions(node: T, f: Callable[[s.Expr], s.Expr]) -> T:
    """Rebuild a node with `f` applied to each of its expressions, inner first; bodies of blocks are left alone."""
    rebuilt: Any
    if isinstance(node, tuple):
        rebuilt = tuple(map_expressions(x, f) for x in node)
        return rebuilt  # type: ignore[no-any-return]
    if not is_dataclass(node):
        return node
    changes = {}
    for field_ in fields(node):
        if field_.name in ("span", "body", "orelse"):
            continue
        old = getattr(node, field_.name)
        if is_dataclass(old) or isinstance(old, tuple):
            new = map_expressions(old, f)
            if new != old:
                changes[field_.name] = new
    rebuilt = replace(node, **changes) if changes else node  # type: ignore[type-var]
    return f(rebuilt) if isinstance(rebuilt, _EXPRESSIONS) else rebuilt  # type: ignore[return-value]


def substitute(node: T, values: Mapping[str, s.Expr]) -> T:
    """Put expressions in the place of names."""
    return map_expressions(node, lambda e: values.get(e.id, e) if isinstance(e, s.Name) else e)


def map_blocks(
    body: tuple[s.Statement, ...], f: Callable[[s.Statement], s.Statement | tuple[s.Statement, ...] | None]
) -> tuple[s.Statement, ...]:
    """Rebuild a body with `f` applied to each statement, inner first; `f` gives a statement, several, or None."""
    out: list[s.Statement] = []
    for n in body:
        if isinstance(n, s.For | s.Role):
            n = replace(n, body=map_blocks(n.body, f))
        elif isinstance(n, s.If):
            n = replace(n, body=map_blocks(n.body, f), orelse=map_blocks(n.orelse, f))
        result = f(n)
        if isinstance(result, tuple):
            out.extend(result)
        elif result is not None:
            out.append(result)
    return tuple(out)


def with_span(node: T, span: Span) -> T:
    """Rebuild a node with one place for all that is in it."""
    rebuilt: Any = node
    if isinstance(node, tuple):
        rebuilt = tuple(with_span(x, span) for x in node)
    elif is_dataclass(node):
        changes: dict[str, Any] = {}
        for f in fields(node):
            old = getattr(node, f.name)
            if f.name == "span":
                changes["span"] = span
            elif is_dataclass(old) or isinstance(old, tuple):
                changes[f.name] = with_span(old, span)
        rebuilt = replace(node, **changes)  # type: ignore[type-var]
    return rebuilt  # type: ignore[no-any-return]


def rename_tiles(n: s.Statement, names: Mapping[str, str]) -> s.Statement:
    """Rename the tiles and variables that a statement itself makes, reads and writes; not those in its block."""
    new: Any = substitute(n, {k: s.Name(v) for k, v in names.items()})

    def pick(name: Any) -> Any:
        return names.get(name, name)

    match new:
        case s.Gemm():
            a, b = (replace(o, name=pick(o.name)) for o in (new.a, new.b))
            new = replace(new, a=a, b=b, out=pick(new.out))
        case s.Mask():
            new = replace(new, tile=pick(new.tile))
        case s.Compute() | s.Apply():
            new = replace(new, out=pick(new.out))
        case s.Reshape():
            new = replace(new, name=pick(new.name), out=pick(new.out))
        case s.Copy():
            new = replace(new, name=pick(new.name), to_name=pick(new.to_name))
        case s.Allocate():
            new = replace(new, name=pick(new.name), view=pick(new.view), over=pick(new.over))
        case s.Let() | s.Find():
            new = replace(new, name=pick(new.name))
        case s.For():
            new = replace(new, var=pick(new.var))
    return map_expressions(new, lambda e: _rename_indexed(e, names))  # type: ignore[no-any-return]


def _rename_indexed(e: s.Expr, names: Mapping[str, str]) -> s.Expr:
    if isinstance(e, s.Index):
        return replace(e, tensor=names.get(e.tensor, e.tensor))
    if isinstance(e, s.Scan):
        return replace(e, tile=names.get(e.tile, e.tile))
    return e


def num(value: int) -> s.Num:
    """Make an integer literal."""
    return s.Num(value)


def add(a: s.Expr, b: s.Expr) -> s.Expr:
    """Make `a + b`, folding literals so that rewritten programs stay readable."""
    return _fold("+", a, b)


def sub(a: s.Expr, b: s.Expr) -> s.Expr:
    """Make `a - b`, folding literals."""
    return _fold("-", a, b)


def mul(a: s.Expr, b: s.Expr) -> s.Expr:
    """Make `a * b`, folding literals."""
    return _fold("*", a, b)


def call(function: str, *args: s.Expr) -> s.Call:
    """Make a call of the function table."""
    return s.Call(function, args)


def compare(a: s.Expr, op: str, b: s.Expr) -> s.Compare:
    """Make a comparison."""
    return s.Compare((a, b), (op,))


def _fold(op: str, a: s.Expr, b: s.Expr) -> s.Expr:
    if isinstance(a, s.Num) and isinstance(b, s.Num):
        return s.Num({"+": a.value + b.value, "-": a.value - b.value, "*": a.value * b.value}[op])
    if isinstance(b, s.Num) and b.value == (1 if op == "*" else 0):
        return a
    if isinstance(a, s.Num) and a.value == (1 if op == "*" else 0) and op != "-":
        return b
    if isinstance(b, s.Num) and op in "+-" and isinstance(a, s.Binary) and a.op in "+-" and isinstance(a.right, s.Num):
        inner = a.right.value if a.op == "+" else -a.right.value
        total = inner + (b.value if op == "+" else -b.value)
        return a.left if total == 0 else s.Binary("+" if total > 0 else "-", a.left, s.Num(abs(total)))
    return s.Binary(op, a, b)


def conjuncts(e: s.Expr) -> list[s.Expr]:
    """Split a condition at its `and`s; a chain of comparisons becomes its links."""
    if isinstance(e, s.Binary) and e.op == "and":
        return conjuncts(e.left) + conjuncts(e.right)
    if isinstance(e, s.Compare) and len(e.ops) > 1:
        links = zip(e.operands, e.ops, e.operands[1:], strict=False)
        return [s.Compare((a, b), (op,)) for a, op, b in links]
    return [e]
