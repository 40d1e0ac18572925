"""Compute: elementwise expressions and row reductions on register tiles; macros and word operators."""

from __future__ import annotations

import difflib

import numpy as np

from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.evaluate import align
from qimeng_attention.tl.machine import Strand
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.ends import ends_of
from qimeng_attention.tl.statements.gemm import unmasked
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.traverse import names_in
from qimeng_attention.tl.types import TileType, same_sizes


def _check(n: s.Compute, scope: Scope) -> None:
    names = names_in(n.value)
    context = names | ({n.out} if n.new and n.out in scope.filled else set())
    kind = scope.type_of(n.value, n.span, scope.axes_of_tiles(context))
    if kind.kind == "bool":
        scope.report("TL104", n.span, "Compute makes numbers, found a condition", "use where(condition, a, b)")
    known = scope.tiles.get(n.out)
    if known is None and n.new:
        scope.unknown(n.out, n.span, list(scope.tiles), "tile")
    if known is None:
        scope.claim(n.out, n.span)
        if not kind.axes and kind.kind != "any":
            scope.report(
                "TL106",
                n.span,
                f"{n.out} would be a single number, Compute makes tiles",
                "use Let for an integer of the block, or allocate the tile first",
            )
        if kind.axes and kind.kind != "any":
            scope.tiles[n.out] = TileType(n.out, "register", "f32", kind.axes)
            scope.merge_origins(n.out, names)
        else:
            scope.broken.add(n.out)
        scope.filled.add(n.out)
        return
    if known.space != "register":
        scope.report(
            "TL207",
            n.span,
            f"{n.out} lies in {known.space} memory, Compute writes registers",
            "choose another name",
        )
    elif not {a.name for a in kind.axes} <= set(known.axis_names):
        found = ", ".join(a.name for a in kind.axes)
        scope.report(
            "TL105",
            n.span,
            f"the value has the axes ({found}), but {n.out} is {known.describe()}",
            "reduce the value over the axis that the tile lacks, or write to another tile",
        )
    elif not same_sizes(kind.axes, tuple(a for x in kind.axes for a in known.axes if a.name == x.name)):
        scope.report(
            "TL106",
            n.span,
            f"the value's extents differ from {n.out}, which is {known.describe()}",
            "give both the same extents",
        )
    before = dict(scope.origins.get(n.out, {}))
    scope.merge_origins(n.out, names)
    if not names & set(scope.tiles) and known is not None:
        scope.origins[n.out] = before
    scope.filled.add(n.out)


def _run(n: s.Compute, t: Strand) -> None:
    names = t.machine.reads(n).names
    kind = t.machine.checked.tiles[n.out]
    kept = {a.name for a in kind.axes}
    tiles = names & t.registers.keys()
    origin = {a: o for name in sorted(tiles) for a, o in t.registers[name].origin.items() if a in kept}
    if t.machine.reads(n).chooses:
        ends = {a: end for a, end in ends_of(n.value, t, n.span).items() if a in kept}
    else:
        ends = {a: end for name in sorted(tiles) for a, end in t.registers[name].ends.items() if a in kept}
    if n.out in t.registers and not tiles:
        origin = t.registers[n.out].origin
    _check_reductions(n, t)
    if not t.machine.numeric:
        for name in sorted(names & t.machine.checked.tiles.keys()):
            t.read_register(name, n.span)
        t.write_register(n.out, None, origin, n.span, ends)
        return
    context = set(names) | ({n.out} & t.registers.keys() if n.new else set())
    value = t.evaluate(n.value, t.environment(context, n.span), n.span)
    shape = tuple(a.size for a in kind.axes)
    t.write_register(n.out, np.array(align(value, kind.axis_names, shape), np.float32), origin, n.span, ends)


def _check_reductions(n: s.Compute, t: Strand) -> None:
    for call, names in t.machine.reads(n).reduced:
        for name in sorted(names & t.registers.keys()):
            axes, ragged = t.machine.checked.tiles[name].axis_names, t.registers[name].ends
            if len(axes) == 2 and axes[1] in ragged and any(axes[1] in ends_of(x, t, n.span) for x in call.args):
                unmasked(name, axes[1], call.function, n.span, t)


def _check_apply(n: s.Apply, scope: Scope) -> None:
    """Macros are written out before the checker walks: what is left has no definition."""
    if n.operator == "Softmax":
        scope.report(
            "TL109",
            n.span,
            "Softmax over a whole row cannot be computed tile by tile",
            "write `Compute OnlineSoftmax S, O, m, l with scale * log2e`, which keeps the running maximum and sum",
        )
        return
    near = difflib.get_close_matches(n.operator, scope.macros, n=1, cutoff=0.4)
    scope.report(
        "TL109",
        n.span,
        f"unknown operator '{n.operator}'",
        f"did you mean '{near[0]}'?" if near else f"define it with Define, or use one of {', '.join(scope.macros)}",
    )


def _run_apply(n: s.Apply, t: Strand) -> None:
    raise AssertionError("macros are written out before a program runs")


RULES = {
    s.Compute: Rule(
        "Compute",
        "Compute",
        "Compute exp2(S * c - m * c) and get new S",
        "Computes an elementwise expression or a row reduction of register tiles; vectors broadcast "
        "along the axis "
        "they "
        "lack, by name.",
        _check,
        _run,
        "sketch",
    ),
    s.Apply: Rule(
        "Apply",
        "Compute",
        "Compute OnlineSoftmax S, O, m, l with scale * log2e",
        "Uses a macro that is itself defined in TL (Define), or an operator in its word form (Add, "
        "Subtract, Multiply, "
        "Divide).",
        _check_apply,
        _run_apply,
        "sketch",
    ),
}
