"""What was understood of a description: the formula, what it assumes, a picture of the mask, an example in numbers.

Printed before anything is made, so that a wrong reading costs a look and no kernel. The numbers come from the
functions of the judge's float64 reference.

Not here: drawing (terminal_page.py, html_page.py), what expressions mean (judge/meaning.py).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from qimeng_attention.judge import Call, Operator
from qimeng_attention.judge.weighing import weigh
from qimeng_attention.named_tensors import kernel_name
from qimeng_attention.report.mask_picture import MaskPicture, draw_mask
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array
from qimeng_attention.tl.traverse import names_in

EXAMPLE_SQ, EXAMPLE_SK = 4, 6
EXAMPLE_SINK = 1.0
_SEED = 0


@dataclass(frozen=True, slots=True)
class Weights:
    """An example: one head's weights on random queries and keys."""

    values: Array  # (EXAMPLE_SQ, EXAMPLE_SK) float64, less where the description fixes less
    visible: Array  # the same shape, bool
    lse: Array | None  # one for each row; None where weights have none
    inputs: str  # in words


@dataclass(frozen=True, slots=True)
class Understood:
    """A description, read."""

    name: str
    formula: tuple[tuple[str, str], ...]  # what, and how it is computed, in order
    assumptions: tuple[tuple[str, str], ...]  # of what, and what is assumed
    picture: MaskPicture
    weights: Weights


def understand(spec: AttentionSpec) -> Understood:
    """Read a description.

    Raises:
        SpecError: its mask or score cannot be read.
    """
    operator = Operator.of(spec)
    with np.errstate(all="ignore"):  # an expression may overflow: the example then shows it
        picture, weights = draw_mask(spec, operator), example_weights(spec, operator)
    formula, assumptions = tuple(_formula(spec)), tuple(_assumptions(spec, operator))
    return Understood(spec.kernel_name, formula, assumptions, picture, weights)


def _formula(spec: AttentionSpec) -> list[tuple[str, str]]:
    head = _key_head(spec)
    over = "sum over the seen kv_idx of"
    key, lines = f"b, kv_idx, {head}", []
    if spec.seqused_k:
        lines.append(("Sk", "seqused_k[b], from 0 to what the cache holds; kv_idx < Sk"))
    if spec.page_size is not None:
        size = spec.page_size
        lines.append(("page", f"page_table[b, kv_idx // {size}]"))
        key = f"page, kv_idx % {size}, {head}"
    lines.append(("score", f"scale * (Q[b, q_idx, h] . K[{key}])"))
    if spec.score_expression:
        lines.append(("score", spec.score_expression))
    lines += [
        ("seen", spec.condition or "every kv_idx"),
        ("P", f"{spec.weighing.formula.format(over=over)}, 0 where not seen"),
        ("O[b, q_idx, h]", f"sum over kv_idx of P * V[{key}]"),
    ]
    if "LSE" in spec.outputs:
        lines.append(("LSE[b, h, q_idx]", spec.weighing.lse_formula.format(over=over)))
    return lines


def _key_head(spec: AttentionSpec) -> str:
    group = spec.Hq // spec.Hk
    return "h" if group == 1 else f"h // {group}"


def _assumptions(spec: AttentionSpec, operator: Operator) -> list[tuple[str, str]]:
    default = f"{spec.default_scale:.6g}" + (f" = 1 / sqrt({spec.Dqk})" if spec.scale is None else "")
    signs = "positive ones only" if spec.scale_sign == "positive" else "of any sign"
    lines = [
        ("layout", f"{spec.layout().removeprefix('tensors ')}, {spec.lengths()}, any strides with a last one of 1"),
        *_cache(spec),
        ("types", f"Q, K, V and O are {spec.dtype}; scores and sums are float32"),
        ("heads", f"{spec.Hq} for queries, {spec.Hk} for keys and values; query head h reads head {_key_head(spec)}"),
        ("head dims", f"{spec.Dqk} for queries and keys, {spec.Dv} for values"),
        ("scale", f"{default} unless a call gives its own, {signs}"),
        ("seen keys", spec.visible_keys()),
        ("positions", _positions(operator)),
        (
            "blind rows",
            "a row that sees no key gives O = 0" + (f" and LSE = {spec.weighing.blind_lse}" * ("LSE" in spec.outputs)),
        ),
    ]
    lines += _weights(spec)
    if spec.varlen:
        lines.append(("sequences", "b is the sequence; q_idx, kv_idx, Sq and Sk are its own, and it sees no other"))
        lines.append(
            ("offsets", "held within the tensors whatever they are; tokens of no sequence are left as they were")
        )
    if "LSE" in spec.outputs:
        lines.append(("LSE", "a natural logarithm, of the scores after every modification"))
    return lines


def _weights(spec: AttentionSpec) -> list[tuple[str, str]]:
    """Say what a reader of another word than softmax may assume otherwise."""
    weighing = spec.weighing
    if not weighing.summed:
        largest = "; P beyond 65,504 is infinite in fp16" * (spec.dtype == "fp16" and weighing.name != "sigmoid")
        return [("weights", f"each of one score, not divided by a sum, so there is no LSE{largest}")]
    if weighing.sink == "none":
        return []
    each = "one for each query head, " if weighing.reads_sink else ""
    what = f"a logit of {weighing.blind_lse}: {each}in units of the score after every modification, not scaled"
    return [("sink", f"{what}; it joins the sum and the LSE and has no value")]


def _cache(spec: AttentionSpec) -> list[tuple[str, str]]:
    """Say how keys and values lie where each entry has its own number of them."""
    if not spec.seqused_k:
        return []
    lines = [("lengths", "seqused_k (B) int32; below 0 counts as 0, beyond what the cache holds as that")]
    if spec.page_size is not None:
        pages = f"k, v (pages, {spec.page_size}, Hk, D); page_table (B, pages of an entry) int32, in order"
        lines.append(("pages", f"{pages}; a number that names no page reads as zeros"))
    return lines


def _positions(operator: Operator) -> str:
    names = names_in((operator.condition, operator.score))
    if not names & {"q_idx", "kv_idx"}:
        return "nothing depends on them"
    if {"Sq", "Sk"} <= names:
        return "q_idx and kv_idx count from 0; q_idx + Sk - Sq is the key that stands at a query"
    return "q_idx and kv_idx both count from 0; where Sq and Sk differ, nothing is aligned at the ends"


def example_weights(spec: AttentionSpec, operator: Operator) -> Weights:
    """Compute the weights of one head in float64 on random queries and keys of a short call."""
    shown = spec.default_scale
    lengths = min(spec.Sq or EXAMPLE_SQ, EXAMPLE_SQ), min(spec.Sk or EXAMPLE_SK, EXAMPLE_SK)
    call = Call(1, *lengths, spec.Hq, spec.Hk, spec.Dqk, spec.Dv, shown)
    rng = np.random.default_rng(_SEED)
    rows, positions = (np.arange(length) for length in lengths)
    queries, keys = (rng.standard_normal((length, spec.Dqk)) for length in lengths)
    words = f"b = 0, h = 0, Sq = {lengths[0]}, Sk = {lengths[1]}, Q and K from N(0, 1), scale {shown:.6g}"
    if operator.sink_tensor is not None:
        sinks = {kernel_name(operator.sink_tensor): np.full(spec.Hq, EXAMPLE_SINK)}
        operator = operator.bind(operator.drawn(call) | sinks)
        words += f", sink[0] {EXAMPLE_SINK:g}"
    visible = operator.visible(call, 0, 0, rows, positions)
    scores = operator.modified(call, 0, 0, rows, positions, shown * (queries @ keys.T))
    values, lse = weigh(operator.weighing, scores, visible, operator.sink_of(call, 0))
    return Weights(values, visible, lse if spec.weighing.summed else None, words)
