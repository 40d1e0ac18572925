"""The first step of authoring: a sketch from the library, with the specification's expressions composed into it.

A sketch says what moves and what is computed, in which order; it has no numbers.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import replace
from importlib import resources

from qimeng_attention.caches import LENGTH
from qimeng_attention.errors import DiagnosticError, SpecError
from qimeng_attention.named_tensors import kernel_name, own_sizes
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.functions import CONSTANTS, FUNCTIONS, REDUCTIONS
from qimeng_attention.tl.named import as_in_programs, misuse
from qimeng_attention.tl.parser import parse, parse_expression
from qimeng_attention.tl.traverse import expressions, map_blocks, map_expressions, names_in, num, substitute
from qimeng_attention.weights import SINK

# How a user's names are called in TL.
RENAMED = {"q_idx": "q", "kv_idx": "k", "h": "head", "b": "batch"}
SIZES = ("B", "Hq", "Hk", "Sq", "Sk")
_TL_NAMES = {user: s.Name(tl) for user, tl in RENAMED.items()}
# Registers: with them ptxas spills at most 44 bytes in six programs tried (docs/log.md), without up to 1,352.
A_TENSOR = 6
FOR_EACH_SCORE = 12  # where an element is read for each score
COLUMN_LIMIT = s.Compare((s.Name("k"), s.Name("Sk")), ("<",))


def visible(spec: AttentionSpec) -> s.Expr | None:
    """Give the mask's condition in TL's names, or None where every key is seen.

    Raises:
        SpecError: an expression that does not parse, or reads an unknown name.
    """
    if spec.condition is None:
        return None
    return _renamed(_parsed(spec, spec.condition, "mask", (*RENAMED, *SIZES)), spec)


def modified(spec: AttentionSpec, scaled: s.Expr) -> s.Expr:
    """Give the modified score of a scaled one; the same where there are no modifiers."""
    if spec.score_expression is None:
        return scaled
    e = _parsed(spec, spec.score_expression, "score", ("score", *RENAMED, *SIZES))
    return map_expressions(substitute(_renamed(e, spec), {"score": scaled}), _factors_together)


def _factors_together(e: s.Expr) -> s.Expr:
    """Write `(S * a) / number` as `S * (a / number)`: the factor is the same for all elements, and computed once."""
    match e:
        case s.Binary("/", s.Binary("*", s.Name("S"), a), s.Num() as number):
            return s.Binary("*", s.Name("S"), s.Binary("/", a, number))
    return e


def _parsed(spec: AttentionSpec, text: str, field: str, known: tuple[str, ...]) -> s.Expr:
    try:
        e = parse_expression(text)
    except DiagnosticError as error:
        first = error.diagnostics[0]
        raise SpecError(
            f"{field} cannot be read at column {first.span.column}: {first.message}",
            hint=first.hint,
            field=field,
            value=text,
        ) from None
    if wrong := misuse(e, spec.tensors):
        raise SpecError(
            f"{field} {wrong.message}",
            hint=wrong.hint,
            field=field,
            value=text,
            allowed=list(spec.tensors),
            nearest=wrong.nearest,
        )
    known = (*known, *own_sizes(spec.tensors))
    for name in sorted(names_in(e) - set(known) - set(CONSTANTS) - set(spec.tensors)):
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
        raise SpecError(
            f"{field} reads the unknown name '{name}'",
            hint=f"did you mean '{near[0]}'?" if near else f"use {', '.join(known)}",
            field=field,
            value=text,
            allowed=list(known),
            nearest=near[0] if near else None,
        )
    for call in expressions(e):
        if isinstance(call, s.Call) and (call.function not in FUNCTIONS or call.function in REDUCTIONS):
            allowed = sorted(set(FUNCTIONS) - REDUCTIONS)
            near = difflib.get_close_matches(call.function, allowed, n=1, cutoff=0.3)
            raise SpecError(
                f"{field} calls the unknown function '{call.function}'",
                hint=f"did you mean '{near[0]}'?" if near else f"use {', '.join(allowed)}",
                field=field,
                value=text,
                allowed=allowed,
                nearest=near[0] if near else None,
            )
    return e


def _renamed(e: s.Expr, spec: AttentionSpec) -> s.Expr:
    return as_in_programs(substitute(e, _TL_NAMES | heads(spec) | lengths(spec)), spec.tensors)


def heads(spec: AttentionSpec) -> dict[str, s.Expr]:
    """Give what stands for Hk where the key heads are the query heads: a program has one size for both."""
    return {"Hk": s.Name("Hq")} if spec.Hq == spec.Hk else {}


def lengths(spec: AttentionSpec) -> dict[str, s.Expr]:
    """Give what stands for Sk where each entry has a length of its own."""
    return {"Sk": s.Name(LENGTH)} if spec.seqused_k else {}


def softmax_factor(spec: AttentionSpec) -> tuple[bool, s.Expr]:
    """Tell whether the scores are written out before the softmax, and what its exponent multiplies them by."""
    written = spec.score_expression is not None or spec.scale_sign == "any" or not spec.weighing.summed
    return written, s.Name("log2e") if written else s.Binary("*", s.Name("scale"), s.Name("log2e"))


def compose(spec: AttentionSpec, library: str = "attention") -> s.Program:
    """Compose a specification's sketch.

    Args:
        spec: what is asked for.
        library: the shipped sketches to begin with; the spec's weights say which of them. Mask and score go into its
            first kernel, a sink into whichever reads it.

    Raises:
        SpecError: an expression that does not parse, or reads an unknown name.
    """
    _refuse_unread(spec)
    program = library_sketch(library + spec.weighing.library)
    written, factor = softmax_factor(spec)
    condition = visible(spec)
    limit = substitute(COLUMN_LIMIT, lengths(spec))
    mask = limit if condition is None else s.Binary("and", condition, limit)
    score = modified(spec, s.Binary("*", s.Name("S"), s.Name("scale")))
    summed = s.Call("ln", (s.Name("l"),))
    m = s.Name("m") if written else s.Binary("*", s.Name("m"), s.Name("scale"))
    values: dict[str, s.Expr] = {"visible": mask, "c": factor, "logarithm": s.Binary("+", m, summed)}
    kernel = program.kernels[0]
    lse = "LSE" in spec.outputs or len(program.kernels) > 1  # a later kernel needs the parts' own
    body = map_blocks(kernel.body, lambda n: _filled_in(n, values, score if written else None, lse))
    body = map_blocks(body, lambda n: _weighed(n, spec))
    rest = (replace(k, body=map_blocks(k.body, lambda n: _weighed(n, spec))) for k in program.kernels[1:])
    return replace(program, kernels=(replace(kernel, body=body), *rest))


def _weighed(n: s.Statement, spec: AttentionSpec) -> s.Statement | None:
    """Put in what makes a weight of a score, and the sink."""
    weighing = spec.weighing
    if isinstance(n, s.Apply) and n.operator == "Weights":
        return replace(n, operator=weighing.macro) if weighing.macro else None
    if weighing.sink == "none":
        return n
    element = s.Index(kernel_name(SINK), (s.Name("head"),))
    return substitute(n, {"sink": element if weighing.reads_sink else num(0)})


def held_registers(spec: AttentionSpec) -> int:
    """Estimate the registers a thread that named tensors take: addresses, what rows hold, what is under way."""
    given = [visible(spec), modified(spec, num(0))]
    read = [x for e in given for x in expressions(e) if isinstance(x, s.Index)]
    held = in_scores(spec)
    return A_TENSOR * len(held) + FOR_EACH_SCORE * any({"q", "k"} <= names_in(x) for x in read)


def in_scores(spec: AttentionSpec) -> list[str]:
    """Give the named tensors that mask or score read; a sink is read behind the loop."""
    given = [visible(spec), modified(spec, num(0))]
    read = {x.tensor for e in given for x in expressions(e) if isinstance(x, s.Index)}
    return [name for name in spec.tensors if kernel_name(name) in read]


def _refuse_unread(spec: AttentionSpec) -> None:
    read = in_scores(spec)
    for name in spec.tensors:
        if name not in read and not (name == SINK and spec.weighing.reads_sink):
            raise SpecError(
                f"the tensor '{name}' is read by neither mask nor score",
                hint=f"read it, as {name}[...], or leave it out",
                field="tensors",
                value=name,
            )


def _filled_in(n: s.Statement, values: Mapping[str, s.Expr], score: s.Expr | None, lse: bool) -> s.Statement | None:
    match n:
        case s.Compute(s.Call("score", _), _):
            return None if score is None else replace(n, value=score)
        case s.Compute(_, "lse") | s.Copy("lse"):
            return substitute(n, values) if lse else None
    return substitute(n, values)


def library_sketch(name: str) -> s.Program:
    """Read a sketch of the shipped library."""
    text = resources.files("qimeng_attention.tl").joinpath("library", f"{name}.tl").read_text("utf-8")
    return parse(text, f"{name}.tl")
