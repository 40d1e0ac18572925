"""How many blocks of a kernel fit on one SM, from its resources and a GPU's limits.

The arithmetic is that of the CUDA occupancy calculator (cuda_occupancy.h, CUDA 13.2), with all of the shared
memory that an SM can give chosen as shared memory; the tests compare with values which that header computed.

Not here: finding a kernel's resources (sass.py).
"""

from __future__ import annotations

from dataclasses import dataclass

from qimeng_attention.targets import Target

_WARP = 32
_PARTITIONS = 4  # of an SM, each with a quarter of the registers; cuda_occupancy.h, from 7.0 on


@dataclass(frozen=True, slots=True)
class Occupancy:
    """What fits on one SM; 0 blocks means that the kernel cannot be launched there."""

    blocks_per_sm: int
    warps_per_sm: int
    limited_by: str  # "registers", "shared memory", "threads" or "blocks"


def occupancy(target: Target, *, registers: int, shared_bytes: int, threads: int) -> Occupancy:
    """Count the blocks of `threads` threads that one SM holds.

    Args:
        target: the GPU.
        registers: per thread, as ptxas reports them.
        shared_bytes: per block, static and dynamic together.
        threads: per block.
    """
    warps = -(-threads // _WARP)
    limits = {
        "registers": _by_registers(target, registers, warps),
        "shared memory": _by_shared_memory(target, shared_bytes),
        "threads": target.max_threads_per_sm // _WARP // warps if threads <= target.max_threads_per_block else 0,
        "blocks": target.max_blocks_per_sm,
    }
    limited_by = min(limits, key=lambda name: limits[name])
    blocks = limits[limited_by]
    return Occupancy(blocks, blocks * warps, limited_by)


def _by_registers(target: Target, registers: int, warps: int) -> int:
    per_warp = _round_up(max(registers, 1) * _WARP, target.register_unit)
    # NOTE: the hardware checks a launch as if every partition got the same number of warps.
    if registers > target.max_registers_per_thread or (
        per_warp * _round_up(warps, _PARTITIONS) > target.registers_per_sm
    ):
        return 0
    warps_per_partition = target.registers_per_sm // _PARTITIONS // per_warp
    return warps_per_partition * _PARTITIONS // warps


def _by_shared_memory(target: Target, shared_bytes: int) -> int:
    taken = _round_up(shared_bytes + target.shared_reserved_bytes, target.shared_granularity_bytes)
    if shared_bytes > target.shared_per_block_bytes:
        return 0
    return target.shared_per_sm_bytes // taken if taken else target.max_blocks_per_sm


def _round_up(number: int, unit: int) -> int:
    return -(-number // unit) * unit
