"""How a call's keys and values lie in memory where entries have lengths of their own, or lie in pages.

The reference knows keys and values as (B, Sk, H, D). A program is handed what a serving engine would hand it: past an
entry's length NaN and infinities, pages in no order, those with the same content once for all entries, others in use
by nobody, numbers in the table that name no page, and such a number in place of a page of zeros.

Not here: which lengths a case has (inputs.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from qimeng_attention.caches import LENGTHS, MOST_PAGES, PAGE, PAGES, TABLE
from qimeng_attention.judge.families import Tensors
from qimeng_attention.judge.meaning import Call
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.numerics import Array

SPARE_PAGES = 3  # in use by nobody
NOWHERE = (-1, 0, 7, (1 << 31) - 1, -(1 << 31))  # the second and third behind the cache's last page


@dataclass(frozen=True)
class Stored:
    """What a program is handed: tensors by the names that it gives them, and the sizes that they tell."""

    tensors: Tensors
    sizes: dict[str, int]


def stored(spec: AttentionSpec, call: Call, tensors: Mapping[str, Array]) -> Stored:
    """Lay a call's keys and values out."""
    if not spec.seqused_k:
        return Stored(dict(tensors), {})
    seed = hashlib.sha256(repr((call, call.lens)).encode() + np.ascontiguousarray(tensors["Q"]).tobytes()).digest()
    random = np.random.default_rng(int.from_bytes(seed[:16], "big"))
    if spec.page_size is not None:
        return _in_pages(spec.page_size, call, tensors, random)
    found = {**tensors, LENGTHS: _lengths(call, call.Sk)}
    for name in ("K", "V"):
        found[name] = np.array(tensors[name])
        for b in range(call.B):
            found[name][b, call.keys_of(b) :] = poison(b)
    return Stored(found, {})


def poison(number: int) -> float:
    """Give what nobody may read."""
    return (np.nan, np.inf, -np.inf)[number % 3]


def sizes_for(spec: AttentionSpec, call: Call) -> dict[str, int]:
    """Give sizes of a cache that could hold a call, for what depends on none of its content."""
    if spec.page_size is None:
        return {}
    pages = -(-call.Sk // spec.page_size)
    return {PAGE: spec.page_size, PAGES: call.B * pages, MOST_PAGES: pages}


def shapes_for(spec: AttentionSpec, call: Call) -> dict[str, tuple[int, ...]]:
    """Give the shapes of what a program is handed, in a cache of those sizes."""
    if spec.page_size is None:
        return {LENGTHS: (call.B,)} if spec.seqused_k else {}
    sizes = sizes_for(spec, call)
    rows = (sizes[PAGES], spec.page_size, call.Hk)
    table = (call.B, sizes[MOST_PAGES])
    return {"K": (*rows, call.Dqk), "V": (*rows, call.Dv), LENGTHS: (call.B,), TABLE: table}


def with_shared_pages(page: int | None, call: Call, tensors: Tensors) -> Tensors:
    """Let the second entry begin as the first does, and the last one have a page of zeros."""
    if page is None or call.B < 2 or call.Sk < page:
        return tensors
    found = {**tensors, "K": np.array(tensors["K"]), "V": np.array(tensors["V"])}
    pages = -(-call.Sk // page)
    for name in ("K", "V"):
        found[name][1, : (pages + 1) // 2 * page] = found[name][0, : (pages + 1) // 2 * page]
        found[name][-1, pages // 3 * page : (pages // 3 + 1) * page] = 0
    return found


def _lengths(call: Call, capacity: int) -> Array:
    """Give the lengths as a call hands them over; those beyond the cache are told only where all of it is in use."""
    beyond = [capacity + n - call.Sk if n > call.Sk and capacity == call.Sk else min(n, call.Sk) for n in call.lens]
    return np.array(beyond if call.lens else [call.Sk] * call.B, np.int32).reshape(call.B)


def _in_pages(page: int, call: Call, tensors: Mapping[str, Array], random: np.random.Generator) -> Stored:
    most = -(-call.Sk // page) + (0 if any(n > call.Sk for n in call.lens) else int(random.integers(0, 3)))
    contents: dict[bytes, int] = {}
    rows: list[tuple[int, int, int]] = []  # of each page: an entry and a place in it that hold it, and its rows in use
    numbers = np.full((call.B, most), -1, np.int64)
    empty = np.zeros((call.B, most), bool)
    for b in range(call.B):
        keys = call.keys_of(b)
        for place in range(-(-keys // page)):
            start, end = place * page, min((place + 1) * page, call.Sk)
            parts = [np.ascontiguousarray(tensors[name][b, start:end]) for name in ("K", "V")]
            number = contents.setdefault(b"".join(x.tobytes() for x in parts), len(rows))
            if number == len(rows):
                rows.append((b, start, 0))
            numbers[b, place] = number
            empty[b, place] = not any(np.any(x[: keys - start]) for x in parts)
            if not empty[b, place]:
                rows[number] = (*rows[number][:2], max(rows[number][2], min(keys - start, page)))
    order = random.permutation(len(rows) + SPARE_PAGES)
    found = {**tensors, LENGTHS: _lengths(call, most * page), TABLE: _table(numbers, empty, order, random)}
    for name in ("K", "V"):
        heads, width = tensors[name].shape[2:]
        found[name] = np.empty((len(order), page, heads, width), np.float32)
        for number in range(len(order)):
            found[name][order[number]] = poison(number)
        for number, (b, start, used) in enumerate(rows):
            found[name][order[number], :used] = tensors[name][b, start : start + used]
    return Stored(found, {PAGE: page, PAGES: len(order), MOST_PAGES: most})


def _table(numbers: Array, empty: Array, order: Array, random: np.random.Generator) -> Array:
    """Give the page table: where nothing is in use, or a page holds zeros, numbers that name no page."""
    nowhere = np.array(NOWHERE, np.int64)
    nowhere[1:3] += len(order)
    used = (numbers >= 0) & ~empty
    drawn = random.choice(nowhere, numbers.shape)
    return np.where(used, order[np.maximum(numbers, 0)], drawn).astype(np.int32)


# ------------------------------------------------------------------ lengths


def with_lengths(spec: AttentionSpec, call: Call, tile: int, number: int) -> Call:
    """Give a call of several entries, each with a length of its own: about tiles and pages, none, all, and outside."""
    if not spec.seqused_k:
        return call
    batch = call.B if spec.B is not None or not call.B else call.B + 2
    page, most = spec.page_size or tile, call.Sk
    if page > tile and most and number % 2:
        most = max(most, 2 * page + 1)  # lengths about pages need some
    around = [min(size + d, most) for size in (tile, page, 2 * tile) for d in (-1, 0, 1)]
    choices = [0, 1, most, *around, max(most - 1, 0), most // 2, -3, most + 5, -(1 << 31)]
    drawn = [choices[(number * batch + b) % len(choices)] for b in range(batch)]
    if batch:
        drawn[number % batch] = most  # one entry shows what the family of values is for
    return replace(call, B=batch, Sk=most, lens=tuple(drawn) if number % 4 else ())
