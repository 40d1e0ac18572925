"""Facts of each GPU, as data: the table `gpus.toml` in, one frozen `Target` per GPU out.

What a generation can do is a set of names (`capabilities`) that later stages ask for; a GPU that lacks one
refuses by that name, nothing is emulated. MMA and copy atoms are in `atoms.py`.

Not here: what a kernel uses of all this (the build report says so), and any measured rate.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

from qimeng_attention.errors import SpecError

__all__ = ["Target", "capabilities", "for_arch", "get", "learn", "names"]

_learnt: dict[str, Target] = {}  # rows of this process, by their folded names


@dataclass(frozen=True, slots=True)
class Target:
    """One GPU. Bytes are bytes, rates are dense peaks of the vendor; `sources` names the documents."""

    name: str  # "A100"
    arch: str  # "sm_80"; with the suffix that its own instructions need, as "sm_90a"
    sms: int
    shared_per_sm_bytes: int
    shared_per_block_bytes: int  # the most a kernel may ask for, static and dynamic together
    shared_reserved_bytes: int  # what the driver takes per block on top of that
    shared_granularity_bytes: int  # shared memory is handed out in multiples of this
    registers_per_sm: int  # 32-bit
    register_unit: int  # registers are handed out per warp in multiples of this
    max_registers_per_thread: int
    max_threads_per_sm: int
    max_threads_per_block: int
    max_blocks_per_sm: int
    l2_bytes: int
    clock_mhz: int  # the boost clock at which `tensor_tflops` holds
    bandwidth_bytes_per_s: float
    tensor_tflops: Mapping[str, float]  # dense, fp32 accumulator; keys fp16, bf16, fp8
    tensor_flops_per_clock: int  # per SM, 16-bit operands, fp32 accumulator
    special_per_clock: int  # special-function results (ex2, rcp, ...) per SM
    fp32_lanes: int  # fp32 instructions' lanes per clock and SM; one FMA each
    capabilities: frozenset[str]
    sources: Mapping[str, str]  # "gpu", "generation", "every", "capabilities" -> document

    @property
    def dtypes(self) -> tuple[str, ...]:
        """Operand types of the tensor cores, of "fp16", "bf16", "fp8"."""
        return tuple(self.tensor_tflops)

    def has(self, capability: str) -> bool:
        """Whether the GPU can do it; SpecError for a name that no GPU knows."""
        known = capabilities()
        if capability not in known:
            raise _unknown("capability", capability, known)
        return capability in self.capabilities

    def requires(self, capability: str) -> None:
        """Refuse, with SpecError, if this GPU lacks `capability`."""
        if not self.has(capability):
            able = [t.name for t in _table().values() if capability in t.capabilities]
            raise SpecError(
                f"{self.name} ({self.arch}) has no {capability}",
                hint=f"use a schedule without {capability}, or one of {', '.join(able)}",
                field="capability",
                value=capability,
                allowed=sorted(self.capabilities),
                nearest=None,
            )


def names() -> list[str]:
    """Give the names of all GPUs, oldest generation first."""
    return list(_table())


def get(name: str) -> Target:
    """Find a GPU by name, whatever its case; SpecError names the nearest known one."""
    by_folded = {**_learnt, **{known.casefold(): target for known, target in _table().items()}}
    found = by_folded.get(name.casefold())
    if found is None:
        raise _unknown("target", name, names())
    return found


def for_arch(arch: str) -> tuple[Target, ...]:
    """Find the GPUs of `arch`, with or without its suffix: "sm_90" gives H100 and H200; else SpecError."""
    found = tuple(t for t in _table().values() if arch in (t.arch, t.arch.rstrip("a")))
    if not found:
        raise _unknown("arch", arch, dict.fromkeys(t.arch for t in _table().values()))
    return found


def learn(name: str, **facts: Any) -> Target:
    """Add a GPU that the table lacks, for this process: `get` finds it, `names` and `for_arch` keep to the table.

    Args:
        name: letters and digits, as a program names its target; a name of the table is a ValueError.
        facts: what a row of the table holds, `arch` and `source` among it; what a generation's table says may be
            overruled.
    """
    if name.casefold() in {known.casefold() for known in _table()}:
        raise ValueError(f"{name} is in the table")
    made = _learnt[name.casefold()] = _target(name, facts, _document())
    return made


def capabilities() -> Mapping[str, str]:
    """Give every capability's name with one line on what it is."""
    described = dict(_document()["capabilities"])
    del described["source"]
    return MappingProxyType(described)


def _unknown(field: str, value: str, allowed: Iterable[str]) -> SpecError:
    choices = list(allowed)
    folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(value.casefold(), folded, n=1, cutoff=0.5)
    nearest = folded[close[0]] if close else None
    hint = f"did you mean {nearest}?" if nearest else f"known: {', '.join(choices)}"
    return SpecError(
        f"unknown {field} {value!r}", hint=hint, field=field, value=value, allowed=choices, nearest=nearest
    )


@cache
def _document() -> dict[str, Any]:
    return tomllib.loads(resources.files(__name__).joinpath("gpus.toml").read_text(encoding="utf-8"))


@cache
def _table() -> Mapping[str, Target]:
    document = _document()
    return MappingProxyType({name: _target(name, facts, document) for name, facts in document["gpu"].items()})


def _target(name: str, facts: Mapping[str, Any], document: Mapping[str, Any]) -> Target:
    groups = {"every": document["every"], "generation": document["generation"][facts["arch"]], "gpu": facts}
    merged = {key: value for group in groups.values() for key, value in group.items() if key != "source"}
    merged["tensor_tflops"] = MappingProxyType(dict(merged["tensor_tflops"]))
    merged["capabilities"] = frozenset(merged["capabilities"])
    sources = {group: values["source"] for group, values in groups.items()}
    sources["capabilities"] = document["capabilities"]["source"]
    return Target(name=name, sources=MappingProxyType(sources), **merged)
