"""The GPU that is present, as a target: its row of the table, or one made from what the driver says of it.

A row that is made holds for this process. Limits, SMs, clock and bandwidth are the device's own; the rate of its tensor
cores no driver tells: it is taken from the slowest known GPU of the same generation, and `sources` says so. Speeds that
are computed with it are predictions, as all are that come from the table.

Not here: a target by name (targets).
"""

from __future__ import annotations

import re
from typing import Any

from qimeng_attention import targets
from qimeng_attention.errors import EnvironmentMissing, SpecError
from qimeng_attention.targets import Target

_HINT = "name a target: `--target A100`"
_NO_PART_OF_A_NAME = {"nvidia", "geforce", "tesla", "quadro", "gpu"}
_TRANSFERS_A_CLOCK = 2  # of memory: both edges carry data


def detect() -> Target:
    """Find the target of the first GPU of this machine.

    Raises:
        EnvironmentMissing: no GPU, no library that sees it, or a GPU of a generation that is not known.
    """
    try:
        name, capability, properties = _first_device()
    except Exception as error:  # cuda-core raises many kinds where there is no driver
        raise EnvironmentMissing("no NVIDIA GPU was found", hint=_HINT, cause=type(error).__name__) from None
    return target_of(name, capability, properties)


def _first_device() -> tuple[str, tuple[int, int], Any]:
    from cuda.core import Device

    device = Device(0)
    device.set_current()
    major, minor = device.compute_capability
    return device.name, (major, minor), device.properties


def target_of(name: str, capability: tuple[int, int], properties: Any) -> Target:
    """Give the row of a device, or make one.

    Args:
        name: as the driver gives it, "NVIDIA GeForce RTX 4090".
        capability: its compute capability.
        properties: the driver's attributes, under the names that cuda-core gives them.

    Raises:
        EnvironmentMissing: its generation is not known.
    """
    arch = f"sm_{capability[0]}{capability[1]}"
    try:
        sisters = targets.for_arch(arch)
    except SpecError:
        raise EnvironmentMissing(f"{name} ({arch}) is of no known generation", hint=_HINT) from None
    words = [w for w in re.split(r"[^A-Za-z0-9]+", name) if w and w.lower() not in _NO_PART_OF_A_NAME]
    for sister in sisters:
        if sister.sms == properties.multiprocessor_count and _stands_in(sister.name, words):
            return sister
    own = "".join(words)
    if not own or own[0].isdigit():
        own = f"GPU{own}"
    if own.casefold() in {known.casefold() for known in targets.names()}:
        own = f"{own}x{properties.multiprocessor_count}"  # a GPU of that name with other SMs
    return _made(own, name, min(sisters, key=lambda t: (t.tensor_flops_per_clock, t.clock_mhz)), properties)


def _stands_in(row: str, words: list[str]) -> bool:
    """Tell whether a row's name is made of words of a device's: RTX4090 is RTX 4090, and T4 is no part of T400."""
    pieces = {"".join(words[i:j]).casefold() for i in range(len(words)) for j in range(i + 1, len(words) + 1)}
    return row.casefold() in pieces


def _made(own: str, name: str, sister: Target, properties: Any) -> Target:
    clock = properties.clock_rate // 1000 or sister.clock_mhz  # kHz; a driver may not tell
    memory = properties.memory_clock_rate * 1e3 * _TRANSFERS_A_CLOCK * properties.global_memory_bus_width / 8
    peak = properties.multiprocessor_count * sister.tensor_flops_per_clock * clock * 1e6 / 1e12
    rates = {t: peak * rate / sister.tensor_tflops["fp16"] for t, rate in sister.tensor_tflops.items()}
    return targets.learn(
        own,
        arch=sister.arch,
        source=f"the CUDA driver, of {name}; the tensor cores' rate is assumed to be the {sister.name}'s for each SM "
        "and clock, the least of its generation that is known: speeds are predictions",
        sms=properties.multiprocessor_count,
        l2_bytes=properties.l2_cache_size,
        clock_mhz=clock,
        bandwidth_bytes_per_s=memory or sister.bandwidth_bytes_per_s,
        tensor_flops_per_clock=sister.tensor_flops_per_clock,
        tensor_tflops=rates,
        shared_per_sm_bytes=properties.max_shared_memory_per_multiprocessor,
        shared_per_block_bytes=properties.max_shared_memory_per_block_optin,
        shared_reserved_bytes=properties.reserved_shared_memory_per_block,
        registers_per_sm=properties.max_registers_per_multiprocessor,
        max_threads_per_sm=properties.max_threads_per_multiprocessor,
        max_threads_per_block=properties.max_threads_per_block,
        max_blocks_per_sm=properties.max_blocks_per_multiprocessor,
    )
