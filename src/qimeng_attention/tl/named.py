"""Named tensors in the expressions of a specification: is each one declared, and indexed as it is declared?

Not here: how they are declared (named_tensors.py), the same question within a program (scope.py).
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from qimeng_attention.named_tensors import Dims, kernel_name
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.traverse import expressions, map_expressions


@dataclass(frozen=True, slots=True)
class Misuse:
    """How an expression misuses a tensor: what is wrong, what to do, and the nearest valid name."""

    message: str
    hint: str
    nearest: str | None = None


def misuse(e: s.Expr, tensors: Mapping[str, Dims]) -> Misuse | None:
    """Find an unknown tensor, a tensor without indices, or the wrong number of them."""
    for x in expressions(e):
        if isinstance(x, s.Name) and x.id in tensors:
            return Misuse(f"reads the tensor '{x.id}' without indices", f"read one element: {_example(x.id, tensors)}")
        if not isinstance(x, s.Index):
            continue
        if x.tensor not in tensors:
            near = difflib.get_close_matches(x.tensor, tensors, n=1, cutoff=0.3)
            declare = f"declare it: tensors: {{{x.tensor}: {{dims: [...], dtype: f32}}}}"
            hint = f"did you mean '{near[0]}'?" if near else declare
            return Misuse(f"reads the unknown tensor '{x.tensor}'", hint, near[0] if near else None)
        rank, found = len(tensors[x.tensor].dims), len(x.indices)
        if rank != found:
            hint = f"index it as declared: {_example(x.tensor, tensors)}"
            return Misuse(f"reads '{x.tensor}' with {found} indices, expected {rank}", hint)
    return None


def _example(name: str, tensors: Mapping[str, Dims]) -> str:
    return f"{name}[{', '.join(map(str, tensors[name].dims))}]"


def map_indexed(e: s.Expr, f: Callable[[s.Index], s.Expr]) -> s.Expr:
    """Rebuild an expression with `f` applied to each element of a tensor that it reads, inner first."""
    return map_expressions(e, lambda x: f(x) if isinstance(x, s.Index) else x)


def as_in_programs(e: s.Expr, tensors: Mapping[str, Dims]) -> s.Expr:
    """Call the tensors of a specification what programs call them."""
    return map_indexed(e, lambda x: replace(x, tensor=kernel_name(x.tensor)) if x.tensor in tensors else x)
