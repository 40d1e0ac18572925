"""How a program for few queries reads keys and values: of an entry, up to an end of its own, or from pages."""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention import caches
from qimeng_attention.spec import AttentionSpec


@dataclass(frozen=True)
class Keys:
    """How a program reads keys and values: of an entry of a tensor, up to an end of its own, or from pages."""

    sizes: tuple[str, ...]  # that calls give, where no spec does
    fixed: tuple[str, ...]
    dims: str  # before heads and head dim
    allocated: tuple[str, ...]
    lets: tuple[str, ...]
    place: str  # the coordinate of a tile, before its head


def keys_of(spec: AttentionSpec) -> Keys:
    """Say how a specification's keys are read."""
    lines = tuple(
        f"Allocate {n} in global ({', '.join(map(str, x.dims))}) i32" for n, x in caches.tensors(spec).items()
    )
    if not spec.seqused_k:
        return Keys(("Sk",), (), "B, Sk", lines, (), "batch, k = i * BN")
    end = f"k = i * BN : {caches.LENGTH}"
    lets = (f"Let {caches.LENGTH} = clamp({caches.LENGTHS}[batch], 0, {caches.capacity(spec)})",)
    if spec.page_size is None:
        return Keys(("Sk",), (), "B, Sk", lines, lets, f"batch, {end}")
    page = caches.PAGE
    place = f"{caches.TABLE}[batch, k // {page}], {end} at k % {page}"
    sizes, fixed = (caches.PAGES, caches.MOST_PAGES), (f"{page} = {spec.page_size}",)
    return Keys(sizes, fixed, f"{caches.PAGES}, {page}", lines, lets, place)
