"""Tile and schedule for a block whose warps all do the same, with their reasons: through sm_80's instructions, or
sm_75's, whose copies pass through registers."""

from __future__ import annotations

from qimeng_attention.author.planner.lengths import skipping
from qimeng_attention.author.planner.model import Tiling, carries, tilings
from qimeng_attention.author.planner.reason import Reason, alternatives, no_tile
from qimeng_attention.author.planner.recurrence import Recurrence
from qimeng_attention.author.planner.sketch import held_registers
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target


def choose(spec: AttentionSpec, target: Target, loop: Recurrence) -> tuple[Tiling, list[Reason], list[str]]:
    """Give the best tiling, the reasons (the tile's first) and the lines of the Schedule block.

    Raises:
        SpecError: no tiling fits.
    """
    special = loop.special()
    choices = tilings(target, spec.Dqk, spec.Dv, special, held_registers(spec), loop.on_their_way)
    if not choices:
        raise no_tile(spec, target)
    reasons = _reasons(target, choices[0], choices, special)
    why, t = {r.parameter: r.why for r in reasons}, choices[0]
    through = carries(target)
    lines = [
        f"ring K stages 1, V stages 1  # {why['ring']}",
        f"prefetch K 1 ahead{'' if through else ', V 0 ahead'}  # {why['prefetch']}",
        *([f"store O through shared over Q  # {why['store']}"] if spec.Dv <= spec.Dqk else []),
        "copies sync" if through else "copies async",
        f"guard Mask of loop i where it is all true  # {why['guard']}",
        *([f"carry K, V through register  # {why['carry']}"] if through else []),
        f"warps {t.warps} along q, {t.blocks} blocks an SM  # {why['warps']}",
        *skipping(spec),
        f"grid longest first  # {why['grid']}",
        "grid head fastest",
    ]
    return t, reasons, lines


def _reasons(target: Target, best: Tiling, choices: list[Tiling], special: int) -> list[Reason]:
    others = choices[1:]
    runner = (
        f"; next best {others[0].rows} x {others[0].columns} with {others[0].warps} warps: {others[0].clocks_a_key:.0f}"
        if others
        else ""
    )
    tile = f"{best.clocks_a_key:.0f} clocks for 1,000 scores (predicted), bound by {best.bound}{runner}"
    warps = (
        f"{best.rows // best.warps} rows a warp: each fragment of K and V "
        f"serves {best.rows // best.warps // 16} MMA(s); "
        f"about {best.registers} of {target.max_registers_per_thread} registers"
    )
    kilobytes = best.shared_bytes / 1024
    ring = (
        f"{kilobytes:.0f} KB of shared memory with one stage each: {best.blocks} block(s) an SM hide each other's waits"
    )
    return [
        Reason(
            "tile",
            f"BM = {best.rows}, BN = {best.columns}",
            tile,
            {**_figures(best), **alternatives(choices)},
        ),
        Reason("warps", f"{best.warps} along q, {best.blocks} blocks an SM", warps, {"registers": best.registers}),
        Reason("ring", "K stages 1, V stages 1", ring, {"shared_bytes": best.shared_bytes, "blocks": best.blocks}),
        *_prefetched(target, best),
        Reason("store", "through shared over Q", "whole rows leave in pieces of 16 bytes; Q is no longer needed", {}),
        Reason("guard", "Mask where it is all true", "only the tiles that the mask touches pay for it", {}),
        Reason(
            "grid",
            "head fastest, longest first",
            "neighbours share K and V in the L2 cache, and the last wave is short blocks",
            {},
        ),
        Reason("special", str(special), f"{special} special-function result(s) a score", {"special": special}),
    ]


def _prefetched(target: Target, best: Tiling) -> list[Reason]:
    if not carries(target):
        why = "K of the next tile arrives during softmax, V of this one during the first GEMM"
        return [Reason("prefetch", "K 1 ahead, V 0 ahead", why, {})]
    return [
        Reason(
            "prefetch", "K 1 ahead", "K of the next tile is written as soon as the first GEMM has read this one's", {}
        ),
        Reason(
            "carry",
            "K, V through register",
            f"{target.name} has no asynchronous copy: K of the next tile and V of this one are on their way "
            "during the first GEMM",
            {"registers": best.registers},
        ),
    ]


def _figures(t: Tiling) -> dict[str, float | str]:
    return {
        "tensor": round(t.tensor, 1),
        "shared": round(t.shared, 1),
        "special": round(t.special, 1),
        "issue": round(t.issue, 1),
        "blocks": t.blocks,
        "bound": t.bound,
        "model": "author/planner/model.py",
        "kind": "prediction",
    }
