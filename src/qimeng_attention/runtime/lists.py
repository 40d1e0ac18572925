"""Lists of tiles, made once for calls with the same named tensors.

    lists = attention.lists(q, k, v, doc=ids)
    out = attention(q, k, v, doc=ids, lists=lists)

A bundle's first kernels may read nothing but named tensors: what they make, which tiles of keys each tile of queries
sees, is the same for every call with these tensors and sizes. A plain call makes it anew each time.

Not here: the launches (chain.py), what a call looks like (bundle.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime.manifest import CALL, Manifest


@dataclass(frozen=True, eq=False)
class Lists:
    """What the first kernels of one bundle made, in memory of its own."""

    kernel: str
    files: Mapping[str, str]  # the bundle's digests: other kernels have other tiles
    device: int
    sizes: Mapping[str, int]
    memory: Any  # bytes on the device

    def __repr__(self) -> str:
        known = ", ".join(f"{name} = {value}" for name, value in self.sizes.items())
        return f"<Lists of {self.kernel} for {known}>"

    @property
    def nbytes(self) -> int:
        """Give the bytes that they take on the device."""
        return int(self.memory.numel())


def listing_kernels(manifest: Manifest) -> int:
    """Count the first kernels that read neither q, k and v nor write an output."""
    own = {manifest.call[name] for name in CALL if name in manifest.call} | set(manifest.outputs)
    if not own:
        return 0
    kernels = manifest.kernels
    return next(n for n, kernel in enumerate(kernels) if own & {t.name for t in kernel.tensors})


def listed_tensors(manifest: Manifest) -> tuple[str, ...]:
    """Give the tensors that these kernels write and later ones read."""
    count = listing_kernels(manifest)
    first, later = manifest.kernels[:count], manifest.kernels[count:]
    read = {t.name for kernel in later for t in kernel.tensors if t.role == "input"}
    return tuple(t.name for kernel in first for t in kernel.tensors if t.role == "output" and t.name in read)


def check_lists(lists: object, manifest: Manifest, device: int, sizes: Mapping[str, int]) -> Lists:
    """Give the lists if they are for such a call.

    Raises:
        LaunchError: they are none, or another bundle's, or for another device or other sizes.
    """
    if not isinstance(lists, Lists):
        hint = "pass what lists(q, k, v, ...) of this bundle gave"
        raise LaunchError(f"lists is a {type(lists).__name__}", hint=hint, argument="lists")
    if (lists.kernel, lists.files) != (manifest.kernel, manifest.files):
        hint = "make them with this bundle: lists = attention.lists(q, k, v, ...)"
        raise LaunchError(f"the lists are those of {lists.kernel}, another bundle", hint=hint, argument="lists")
    if lists.device != device:
        problem = f"the lists lie on cuda:{lists.device}, the call's tensors on cuda:{device}"
        raise LaunchError(problem, hint="make lists on the device of the call", argument="lists")
    for name, value in lists.sizes.items():
        if sizes[name] != value:
            problem = f"the lists are for {name} = {value}, the call has {name} = {sizes[name]}"
            raise LaunchError(problem, hint="make lists for these sizes", argument="lists")
    return lists


def no_lists(manifest: Manifest) -> LaunchError:
    """Make the error for a bundle whose kernels make no lists."""
    hint = "leave lists out: the kernel works out which tiles to visit as it runs"
    return LaunchError(f"{manifest.kernel} takes no lists", hint=hint, argument="lists")
