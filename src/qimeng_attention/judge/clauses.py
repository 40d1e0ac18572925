"""Are the inputs strong enough? Each clause of a spec is left out in turn; what is left must be rejected.

A candidate that lacks a clause gives the outputs of a weaker operator. If the rule accepts those on every
case, the judge has not looked at the clause, and says so. A clause that the others imply (`kv_idx < Sk`)
cannot be missed.

Not here: the cases (inputs.py), the rule (rule.py).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import reduce

import numpy as np

from qimeng_attention.judge import rule
from qimeng_attention.judge.contents import KINDS
from qimeng_attention.judge.meaning import Call, Operator, own_sizes_of
from qimeng_attention.judge.reference import Truth, row_chunks, truth
from qimeng_attention.judge.weigh_clauses import hidden_keys_weigh, weaker_weights
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.named import map_indexed
from qimeng_attention.tl.numerics import BOOL, Array, round_to
from qimeng_attention.tl.printer import expression
from qimeng_attention.tl.traverse import expressions, names_in, substitute

PROBES = 120  # pairs of lengths on which a clause of the mask may show
POINTS = 24  # rows and keys looked at in each, besides those near the numbers the mask names


@dataclass(frozen=True, slots=True)
class Clause:
    """A clause of a spec, and the operator that lacks it."""

    name: str
    weaker: Operator
    mask: bool = False  # a part of the mask, or a tensor: implied if no shape tells it apart


def clauses(spec: AttentionSpec, operator: Operator) -> list[Clause]:
    """Give every clause of a spec."""
    found = [Clause(f"mask: {name}", weaker, mask=True) for name, weaker in _masks(operator)]
    found += [Clause(name, weaker, mask=True) for name, weaker in _tensors(operator)]
    if spec.seqused_k:
        found.append(Clause("each entry's own length", replace(operator, lengths="all")))
    found.append(Clause("scale", replace(operator, scale="none")))
    found.append(Clause("the scale of the call", replace(operator, scale="default")))
    if spec.softcap is not None:
        uncapped = spec.model_copy(update={"softcap": None})
        found.append(Clause(f"softcap {spec.softcap:g}", replace(operator, score=Operator.of(uncapped).score)))
    if spec.score.strip() != "score":
        plain = spec.model_copy(update={"score": "score"})
        found.append(Clause(f"score: {spec.score.strip()}", replace(operator, score=Operator.of(plain).score)))
    found += [Clause(name, weaker) for name, weaker in weaker_weights(operator, spec)]
    if (weaker := hidden_keys_weigh(operator)) is not None:
        found.append(Clause("a hidden key weighs 0, not what a score of 0 does", weaker, mask=True))
    if spec.Hk > 1 and spec.Hq > spec.Hk:
        found.append(Clause("query heads of a group share a key head", replace(operator, head_map="interleaved")))
    if _some_row_is_blind(operator, spec):
        found.append(Clause("a row that sees nothing gives O = 0", replace(operator, empty_out="mean")))
        if "LSE" in spec.outputs:
            blind, wrong = spec.weighing.blind_lse, 0.0 if spec.weighing.sink == "none" else float("-inf")
            found.append(Clause(f"a row that sees nothing gives LSE = {blind}", replace(operator, empty_lse=wrong)))
    if "LSE" in spec.outputs:
        found.append(Clause("LSE is a natural logarithm", replace(operator, lse_base=2.0)))
        if operator.score is not None:
            found.append(Clause("LSE is of the modified scores", replace(operator, lse_of="unmodified")))
    return found


def weaker_masks(operator: Operator) -> list[Operator]:
    """Give the operator with each clause of its mask left out."""
    return [weaker for _, weaker in _masks(operator)]


def _masks(operator: Operator) -> Iterator[tuple[str, Operator]]:
    if operator.condition is None:
        return
    for name, left in _without_one(operator.condition):
        yield name, replace(operator, condition=left)
    if {"Sq", "Sk"} <= names_in(operator.condition):
        top = substitute(operator.condition, {"Sq": s.Name("Sk")})
        yield "aligned at the sequences' ends", replace(operator, condition=top)


def _tensors(operator: Operator) -> Iterator[tuple[str, Operator]]:
    """Give the operator without each tensor, and with each index of an element that it reads held at 0."""
    for name, tensor in operator.tensors.items():
        if name == operator.sink_tensor and not _elements(operator, name):
            continue  # one of the clauses of weights
        zero: s.Expr = s.Compare((s.Num(0), s.Num(1)), ("==",)) if tensor.dtype == BOOL else s.Num(0)
        yield f"tensor {name} is read", _with_elements(operator, dict.fromkeys(_elements(operator, name), zero))
    for element in _elements(operator):
        for place, index in enumerate(element.indices):
            if isinstance(index, s.Num):
                continue
            held = replace(element, indices=(*element.indices[:place], s.Num(0), *element.indices[place + 1 :]))
            yield f"{expression(element)} follows {expression(index)}", _with_elements(operator, {element: held})


def _elements(operator: Operator, tensor: str | None = None) -> list[s.Index]:
    """Give every element that mask and score read, of one tensor or of all."""
    found = (x for e in (operator.condition, operator.score) for x in expressions(e) if isinstance(x, s.Index))
    return list(dict.fromkeys(x for x in found if tensor in (None, x.tensor)))


def _with_elements(operator: Operator, values: dict[s.Index, s.Expr]) -> Operator:
    def put(x: s.Index) -> s.Expr:
        return values.get(x, x)

    condition, score = (None if e is None else map_indexed(e, put) for e in (operator.condition, operator.score))
    return replace(operator, condition=condition, score=score)


def _without_one(e: s.Expr) -> Iterator[tuple[str, s.Expr | None]]:
    """Give the condition without each of its parts in turn: operands of `and`, of `or`, links of a chain."""
    if isinstance(e, s.Binary) and e.op in ("and", "or"):
        for mine, other, first in ((e.left, e.right, True), (e.right, e.left, False)):
            for name, left in _without_one(mine):
                rest = other if left is None else s.Binary(e.op, left, other) if first else s.Binary(e.op, other, left)
                yield name, rest
    elif isinstance(e, s.Compare) and len(e.ops) > 1:
        links = [s.Compare((a, b), (op,)) for a, op, b in zip(e.operands, e.ops, e.operands[1:], strict=False)]
        for n, link in enumerate(links):
            others: list[s.Expr] = [x for i, x in enumerate(links) if i != n]
            yield expression(link), reduce(lambda a, b: s.Binary("and", a, b), others)
    else:
        yield expression(e), None


# ------------------------------------------------------------------ what tells a clause apart


def tells_apart(operator: Operator, weaker: Operator, call: Call) -> bool:
    """Tell whether a mask and a weaker one differ anywhere in a call."""
    heads = itertools.product(range(call.B), range(call.Hq)) if operator.reads_position else [(0, 0)]
    keys = np.arange(call.Sk)
    for b, h in heads:
        for rows in row_chunks(call):
            if np.any(operator.visible(call, b, h, rows, keys) != weaker.visible(call, b, h, rows, keys)):
                return True
    return False


def implied(clause: Clause, operator: Operator, spec: AttentionSpec) -> bool:
    """Tell whether the others imply a clause of the mask: no length near its numbers tells it apart."""
    return clause.mask and not any(_differ(operator, clause.weaker, p) for p in _probes(operator, spec))


@dataclass(frozen=True)
class _Probe:
    call: Call
    rows: Array
    keys: Array
    places: tuple[tuple[int, int], ...]  # batch entry and head


def _differ(operator: Operator, weaker: Operator, p: _Probe) -> bool:
    """Tell whether mask or score differ at a probe, whatever named tensors hold."""
    scores = np.random.default_rng(0).standard_normal((len(p.rows), len(p.keys)))
    for kind in KINDS if operator.tensors else KINDS[:1]:
        contents = operator.drawn(p.call, kind) if operator.tensors else {}
        one, other = operator.bind(contents), weaker.bind(contents)
        for place in p.places:
            at = (p.call, *place, p.rows, p.keys)
            if np.any(one.visible(*at) != other.visible(*at)):
                return True
            if one.weighing != other.weighing and not np.all(one.visible(*at)):
                return True
            if one.score != other.score and np.any(one.modified(*at, scores) != other.modified(*at, scores)):
                return True
    return False


def _some_row_is_blind(operator: Operator, spec: AttentionSpec) -> bool:
    """Tell whether a row of some call with keys may see none: looked for among short lengths."""
    for rows, keys in itertools.product((1, 2, 17, 129), (1, 3, 65)):
        call = _call(spec, rows, keys)
        for b, h in _places(spec, operator):
            seen = operator.visible(call, b, h, np.arange(call.Sq), np.arange(call.Sk))
            if call.Sk and not np.all(seen.any(axis=1)):
                return True
    return False


def _probes(operator: Operator, spec: AttentionSpec) -> Iterator[_Probe]:
    """Give lengths up to a few times the largest number in the mask, and the rows and keys near its edges."""
    random = np.random.default_rng(0)
    numbers = sorted(
        {abs(int(e.value)) for e in expressions(operator.condition) if isinstance(e, s.Num) and abs(e.value) < 1 << 30}
    )
    lengths = {1, 2, 3, 17, 130} | {max(1, f * n + d) for n in numbers[-6:] for f in (1, 2) for d in (-1, 0, 1)}
    lengths |= {4 * n + 3 for n in numbers[-1:]}
    pairs = list(itertools.product(sorted(lengths), repeat=2))
    random.shuffle(pairs)
    for rows, keys in pairs[:PROBES]:
        call = _call(spec, rows, keys)
        near = {0, 1, call.Sk - 1, call.Sq - 1, *(n + d for n in numbers for d in (-1, 0, 1))}
        some_rows = _within(call.Sq, near | set(random.integers(0, max(1, call.Sq), POINTS).tolist()))
        shifted = {int(r) + call.Sk - call.Sq + d for r in some_rows for d in (-1, 0, 1)}
        far = {r + sign * (n + d) for r in list(shifted)[:POINTS] for n in numbers for sign in (-1, 1) for d in (0, 1)}
        some_keys = _within(call.Sk, near | shifted | far | set(random.integers(0, max(1, call.Sk), POINTS).tolist()))
        if len(some_rows) and len(some_keys):
            yield _Probe(call, some_rows, some_keys, _places(spec, operator))


def _call(spec: AttentionSpec, rows: int, keys: int) -> Call:
    sq, sk = spec.Sq if spec.Sq is not None else rows, spec.Sk if spec.Sk is not None else keys
    own = own_sizes_of(spec, rows + keys)
    return Call(spec.B or 2, sq, sk, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, spec.default_scale, own)


def _places(spec: AttentionSpec, operator: Operator) -> tuple[tuple[int, int], ...]:
    if not operator.reads_position:
        return ((0, 0),)
    return tuple(itertools.product({0, (spec.B or 2) - 1}, {0, 1 % spec.Hq, spec.Hq // 2, spec.Hq - 1}))


def _within(length: int, places: set[int]) -> Array:
    return np.array(sorted(p for p in places if 0 <= p < length), int)


# ------------------------------------------------------------------ the check


def caught(
    clause: Clause,
    call: Call,
    tensors: dict[str, Array],
    want: Truth,
    limits: rule.Limits,
    spec: AttentionSpec,
    truth_of: Callable[[Operator, Call, Array, Array, Array], Truth] = truth,
) -> bool:
    """Tell whether the rule rejects, on one case, what a candidate that lacks the clause would give."""
    lacking = truth_of(clause.weaker.bind(tensors), call, tensors["Q"], tensors["K"], tensors["V"])
    found = [rule.compare("Out", round_to(lacking.out, spec.dtype), want.out, limits)]
    if "LSE" in spec.outputs:
        found.append(rule.compare("Lse", lacking.lse, want.lse, rule.lse_limits(want)))
    return not all(f.passed for f in found)
