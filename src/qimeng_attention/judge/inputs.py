"""The cases a candidate is judged on: shapes around its tiles, lengths the mask speaks of, kinds of values.

Values are drawn from a seed that mixes the digest of the candidate with entropy of the caller, so that
they exist only after the candidate does. Not here: the values of a family (families.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from qimeng_attention.judge.clauses import tells_apart, weaker_masks
from qimeng_attention.judge.contents import KINDS, draw
from qimeng_attention.judge.families import FAMILIES, Tensors
from qimeng_attention.judge.meaning import Call, Operator, own_sizes_of
from qimeng_attention.judge.range import held_in
from qimeng_attention.judge.storage import with_lengths, with_shared_pages
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.numerics import Array, round_to
from qimeng_attention.tl.traverse import expressions

LARGEST = 60_000.0  # below the largest value of fp16; a scale near 0 makes a family reach for more
TELLING = ("normal", "mask edges")  # families in which every hidden or shown key can matter
AIMED = ("needles", "mask edges")  # in which queries follow from single keys
NUMBERS = 4  # of a candidate's text
LAYOUTS = ("contiguous", "padded rows", "heads first")


@dataclass(frozen=True, slots=True)
class Budget:
    """How much to try."""

    name: str
    heads: int | None  # key heads at most, and query heads a key head; None: as many as the spec has
    keys: int  # the longest Sk
    scores: int  # Sq * Sk * query heads of one call at most
    thorough: bool  # every length and family, or the least that catches the known faults
    failures: int = 6  # cases that fail before the rest is left out


CPU = Budget("cpu", heads=2, keys=16_384, scores=6_000_000, thorough=False)
GPU = Budget("gpu", heads=None, keys=65_536, scores=1 << 31, thorough=True)


@dataclass(frozen=True, slots=True)
class Case:
    """One call to judge: its sizes, its family of values and how its inputs lie in memory."""

    name: str
    call: Call
    family: str
    layout: str = "contiguous"
    contents: str = KINDS[0]  # of named tensors


def draw_seed(digest: str, entropy: int) -> int:
    """Mix the digest of a candidate's text with the caller's entropy."""
    return int.from_bytes(hashlib.sha256(f"{digest}:{entropy}".encode()).digest()[:8], "big")


def values(case: Case, operator: Operator, dtype: str, seed: int) -> Tensors:
    """Draw a case's Q, K and V: float32 arrays that hold values of the spec's type, in the case's layout.

    Named tensors come with them, under the names that programs give them.
    """
    digest = hashlib.sha256(f"{seed}:{case.name}:{case.call}".encode()).digest()
    random = np.random.default_rng(int.from_bytes(digest[:16], "big"))
    named: Tensors = {}
    if operator.tensors:
        own = np.random.default_rng(int.from_bytes(digest[16:], "big"))
        named = draw(own, operator.tensors, case.call.sizes, case.contents, operator.sink_tensor)
        operator = operator.bind(named)
    drawn = held_in(FAMILIES[case.family](random, case.call, operator), operator, case.call, dtype)
    if case.family not in AIMED:
        drawn = with_shared_pages(operator.page, case.call, drawn)
    return named | {n: laid_out(round_to(np.clip(a, -LARGEST, LARGEST), dtype), case.layout) for n, a in drawn.items()}


def laid_out(a: Array, layout: str) -> Array:
    """Give the same values with other strides; the gaps hold NaN."""
    if layout == "padded rows":
        wide = np.full((*a.shape[:-1], a.shape[-1] + 8), np.nan, a.dtype)
        wide[..., : a.shape[-1]] = a
        return wide[..., : a.shape[-1]]
    if layout == "heads first":
        return np.ascontiguousarray(a.swapaxes(1, 2)).swapaxes(1, 2)
    return a


def cases(spec: AttentionSpec, tiles: tuple[int, int], budget: Budget, numbers: Iterable[int] = ()) -> list[Case]:
    """Give the cases for a spec.

    Args:
        spec: what is asked for; lengths and batch that it fixes are kept.
        tiles: query rows and key rows of the candidate's tiles.
        budget: how much to try.
        numbers: that the candidate's text names; some keys lie beyond each of the largest.
    """
    operator = Operator.of(spec)
    planned = _thorough(tiles) if budget.thorough else _short(tiles)
    planned += [(1, 3, far + tiles[1] + 1, "normal") for far in sorted(numbers)[-NUMBERS:] if far > tiles[1]]
    found: dict[tuple[Call, str], Case] = {}
    if not budget.thorough:
        _add(found, own_heads(spec, tiles))
    for number, (batch, rows, keys, family) in enumerate(planned):
        call = with_lengths(spec, _call(spec, budget.heads, batch, rows, keys, number), tiles[1], number)
        if family == "saturating" and operator.score is None:
            continue
        if call.Sk <= budget.keys and call.Sq * call.Sk * call.Hq <= budget.scores:
            _add(found, _case(call, family, number, spec))
    telling = [c.call for c in found.values() if c.family in TELLING]
    for call in _for_mask(spec, operator, tiles, budget, telling):
        _add(found, _case(call, "mask edges", len(found), spec))
    return list(found.values())


def own_heads(spec: AttentionSpec, tiles: tuple[int, int]) -> Case:
    """Give a short case with as many heads as the spec has."""
    call = _sized(spec, 1, min(17, tiles[0]), tiles[1] + 1, spec.Hq, spec.Hk, spec.default_scale)
    return _case(call, "normal", 0, spec)


def few_heads(
    spec: AttentionSpec, tiles: tuple[int, int], budget: Budget, sizes: tuple[int, int, int] | None = None
) -> Case:
    """Give a case with as many heads as the budget grants.

    `sizes` are batch, Sq and Sk; without them those of `own_heads`.
    """
    batch, rows, keys = sizes or (1, min(17, tiles[0]), tiles[1] + 1)
    return _case(_call(spec, budget.heads, batch, rows, keys, 0), "normal", 0, spec)


def sized_case(spec: AttentionSpec, heads: int | None, sizes: tuple[int, int, int], number: int) -> Case:
    """Give a case of a batch, Sq and Sk, with as many heads as `few_heads` has; `number` picks layout and contents."""
    return _case(_call(spec, heads, *sizes, 0), "normal", number, spec)


def _add(found: dict[tuple[Call, str], Case], case: Case) -> None:
    found.setdefault((case.call, case.family), case)


def _case(call: Call, family: str, number: int, spec: AttentionSpec) -> Case:
    layout, contents = LAYOUTS[number % len(LAYOUTS)], KINDS[number % len(KINDS)]
    name = f"{family}, B={call.B} Sq={call.Sq} Sk={call.Sk} Hq={call.Hq} Hk={call.Hk}"
    if call.lens:
        name += f" lengths={','.join(map(str, call.lens))}"
    if spec.tensors:
        name += "".join(f" {n}={value}" for n, value in call.own) + f", tensors: {contents}"
    return Case(name, call, family, layout, contents)


def _call(spec: AttentionSpec, heads: int | None, batch: int, rows: int, keys: int, number: int) -> Call:
    key_heads = min(spec.Hk, heads or spec.Hk)
    group = min(spec.Hq // spec.Hk, heads or spec.Hq)
    scale = spec.default_scale
    if number % 3 == 1:  # a call may give its own
        scale = scale * 0.75
    if number % 3 == 2 and spec.scale_sign == "any":
        scale = -scale
    return _sized(spec, batch, rows, keys, group * key_heads, key_heads, scale)


def _sized(spec: AttentionSpec, batch: int, rows: int, keys: int, heads: int, key_heads: int, scale: float) -> Call:
    batch, rows, keys = (b if a is None else a for a, b in ((spec.B, batch), (spec.Sq, rows), (spec.Sk, keys)))
    own = own_sizes_of(spec, rows + keys)
    return Call(batch, rows, keys, heads, key_heads, spec.Dqk, spec.Dv, scale, own)


# ------------------------------------------------------------------ shapes


def _short(tiles: tuple[int, int]) -> list[tuple[int, int, int, str]]:
    """Give batch, Sq, Sk and family: lengths around the tiles, each family once where it can show most."""
    m, n = tiles
    return [
        (2, m + 1, 2 * n + 1, "normal"),
        (1, 5, 2 * n + 3, "large logits"),
        (1, m - 1 or 1, m + n - 1, "huge logits"),
        (1, 1, 3 * n + 1, "same keys"),
        (1, m + 1, m + 1 + n, "needles"),
        (1, m + 3, m + 3, "mask edges"),
        (2, n + 2, 3 * n, "mask edges"),
        (1, m + 1, n + 1, "normal"),
        (1, 2 * m + 1, 3, "offset ramp"),
        (1, m, m + 1, "normal"),  # whole blocks of rows, one key more than whole tiles
        (1, m, n + 1, "normal"),
        (1, 3 * m + 1, 3 * m + 1, "normal"),  # several blocks, each with several tiles
        (1, m, 1, "normal"),
        (2, 5, 0, "normal"),
        (2, 0, 5, "normal"),
        (1, 1, 1, "normal"),
        (1, 3, 2 * n + 1, "logits near -120"),
        (1, m, 2 * n, "growing logits"),
        (1, 9, 3 * n + 5, "falling logits"),
        (1, 17, 2 * n + 1, "offset ramp"),
        (1, 16, 2 * n, "alternating signs"),
        (1, 2, 2 * n + 7, "logits near -60000"),
        (1, 33, n - 1 or 1, "outliers"),
        (1, 9, 2 * n + 1, "saturating"),
        (1, 3, 1025, "normal"),
        (1, 5, 4099, "normal"),
        (1, 3, n, "tiny values"),
        (1, 2, n + 1, "zeros"),
    ]


def _thorough(tiles: tuple[int, int]) -> list[tuple[int, int, int, str]]:
    """Give lengths around the tiles and around powers of two, families in turn, then long sequences."""
    m, n = tiles
    near = [1, 2, 15, 17, 31, 33, 63, 64, 65, 96, 127, 128, 129, 192, 239, 255, 257, 384, 511, 513, 799]
    near += [1023, 1025, 2049]
    pairs = [(a, b) for i, a in enumerate(near) for b in (near[-1 - i], near[(7 * i + 3) % len(near)])]
    pairs += [
        (m, n),
        (m - 1 or 1, n - 1 or 1),
        (m + 1, n + 1),
        (2 * m + 1, 2 * n + 1),
        (113, 203),
        (203, 113),
        (108, 256),
    ]
    names = list(FAMILIES)
    rows = [(1 + i % 3, a, b, names[i % len(names)]) for i, (a, b) in enumerate(pairs)]
    rows += [(1, 4 * m + 1, 4 * n + 1, name) for name in names]
    rows += [(2, 0, 5, "normal"), (2, 5, 0, "normal"), (3, 1, 1, "normal")]
    return [
        *rows,
        (1, 1, 8193, "needles"),
        (1, 3, 32769, "normal"),
        (1, 4097, 4097, "normal"),
        (1, 8192, 8192, "mask edges"),
        (2, 4095, 1025, "normal"),
        (1, 1025, 16384, "growing logits"),
    ]


def _for_mask(
    spec: AttentionSpec, operator: Operator, tiles: tuple[int, int], budget: Budget, known: list[Call]
) -> Iterable[Call]:
    """Give further calls, long enough that each clause of the mask hides or shows some key."""
    numbers = {
        int(e.value) for e in expressions(operator.condition) if isinstance(e, s.Num) and isinstance(e.value, int)
    }
    m, n = tiles
    for weaker in weaker_masks(operator):
        if any(tells_apart(operator, weaker, call) for call in known):
            continue
        for far in sorted(x for x in numbers if 1 < x < budget.keys):
            longer = [
                (3, far + n + 1),
                (m + 1, far + n + 1),
                (far + 2, far + 2),
                (far + 2, 9),
                (2 * far + 1, 2 * far + 1),
            ]
            calls = [_call(spec, budget.heads and 1, 1, rows, keys, 0) for rows, keys in longer]
            fit = [c for c in calls if c.Sk <= budget.keys and c.Sq * c.Sk * c.Hq <= budget.scores]
            if fitting := next((c for c in fit if tells_apart(operator, weaker, c)), None):
                yield fitting
                known.append(fitting)
                break
