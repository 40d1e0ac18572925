"""Caches of keys and values that each call hands over with the lengths of its entries, and perhaps in pages.

    seqused_k: true      k, v (B, Sk, Hk, D), seqused_k (B) int32: how many keys of each entry count
    page_size: 64        k, v (Pages, 64, Hk, D), page_table (B, MaxPages) int32: where each entry's pages lie

In masks and scores Sk is then the entry's own length. A length outside of 0 and what the cache can hold counts as the
nearer of the two; a page outside of the cache reads as zeros.

Not here: how a program reads them (author/planner/decode.py), what a call must give (runtime/).
"""

from __future__ import annotations

from typing import Protocol

from qimeng_attention.named_tensors import Dims

PAGE_SIZES = tuple(1 << n for n in range(9))  # 1 to 256
LENGTHS, TABLE = "SequsedK", "PageTable"  # as programs call them
LENGTH = "length"  # of the block's entry, in programs
PAGE, PAGES, MOST_PAGES = "Page", "Pages", "MaxPages"  # keys of a page; pages of the cache, and of an entry at most
MOST_KEYS = 1 << 30  # of an entry: indices of keys are int32, and a tile reaches past the last
_CALLED = {LENGTHS: "seqused_k", TABLE: "page_table"}


class Cached(Protocol):
    """What a spec says of its caches."""

    @property
    def seqused_k(self) -> bool: ...  # noqa: D102
    @property
    def page_size(self) -> int | None: ...  # noqa: D102
    @property
    def Hk(self) -> int: ...  # noqa: D102
    @property
    def Dqk(self) -> int: ...  # noqa: D102
    @property
    def Dv(self) -> int: ...  # noqa: D102


def tensors(spec: Cached) -> dict[str, Dims]:
    """Give what a call hands over besides, by the names that programs give."""
    found = {LENGTHS: Dims(("B",), "i32")} if spec.seqused_k else {}
    return found | ({TABLE: Dims(("B", MOST_PAGES), "i32")} if spec.page_size is not None else {})


def arguments(spec: Cached) -> dict[str, str]:
    """Give what a caller calls these tensors, by the names that programs give."""
    return {name: _CALLED[name] for name in tensors(spec)}


def capacity(spec: Cached) -> str:
    """Write how many keys an entry can have, in sizes of a program."""
    return "Sk" if spec.page_size is None else f"{MOST_PAGES} * {PAGE}"


def describe(spec: Cached) -> list[str]:
    """Say what a call hands over, and what is made of values out of range."""
    if not spec.seqused_k:
        return []
    lines = [
        "keys of an entry: seqused_k (B) i32, from 0 to what the cache holds, else the nearer of the two; "
        "Sk below is the entry's own number, and keys past it are never read"
    ]
    if spec.page_size is not None:
        lines.append(
            f"k, v lie in pages of {spec.page_size}: ({PAGES}, {spec.page_size}, Hk, D); "
            f"page_table (B, {MOST_PAGES}) i32 names those of an entry, in order; a page outside reads as zeros"
        )
    return lines
