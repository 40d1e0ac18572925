"""Tile and schedule for roles, with their reasons: the copy engine fills rings, warpgroups compute through wgmma."""

from __future__ import annotations

from collections.abc import Sequence

from qimeng_attention.author.planner.groups import GroupTiling, group_tilings
from qimeng_attention.author.planner.lengths import registers, skipping
from qimeng_attention.author.planner.reason import Reason, alternatives, no_tile
from qimeng_attention.author.planner.recurrence import Recurrence
from qimeng_attention.author.planner.sketch import held_registers, visible
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target
from qimeng_attention.tl.functions import APPROXIMATIONS
from qimeng_attention.tl.traverse import names_in

_TURNS_NEED = 256  # head dim of values from which two instances gain by turns although their loops differ in length


_THRESHOLD = 8  # weights up to 2^8: in any 16-bit type, and few maxima grow by more once a row has seen some keys


def choose(
    spec: AttentionSpec, target: Target, loop: Recurrence, fast: Sequence[str] = ()
) -> tuple[GroupTiling, list[Reason], list[str]]:
    """Give the best tiling, the reasons (the tile's first) and the lines of the Schedule block.

    Args:
        spec: what is asked for.
        target: a GPU with wgmma.
        loop: what the sketch's loop does beside its GEMMs.
        fast: the functions to approximate.

    Raises:
        SpecError: no tiling fits.
    """
    special = loop.special(fast)
    choices = group_tilings(target, spec.Dqk, spec.Dv, special, held_registers(spec))
    if not choices:
        raise no_tile(spec, target)
    t, uneven = choices[0], _uneven(spec)
    counted = uneven or spec.varlen
    turns = _turns(spec, t, uneven)
    beside = "weights" if not loop.sums else "exponentials" if t.waits_early else "row statistics"
    chosen = {"pingpong": turns, "stage": t.staged, "ahead": t.ahead, "sums": loop.sums}
    chosen |= {"rescale": loop.scales and t.rescales_late, "threshold": loop.scales and t.scales_seldom}
    given = registers(spec, t.registers)
    between = "exponentials" if loop.sums else "weights"
    every = _reasons(t, choices, counted, special, between, given)
    reasons = [r for r in every if chosen.get(r.parameter, True)]
    reasons += [approximation(f) for f in fast]
    why = {r.parameter: r.why for r in reasons}
    producer, consumer = given
    lines = [
        *(f"approximate {f}  # {why[f]}" for f in fast),
        f"ring K stages 2, V stages 2  # {why['ring']}",
        *([f"threshold {_THRESHOLD}  # {why['threshold']}"] if chosen["threshold"] else []),
        *([f"sums per lane{' running' if t.sums_run else ''}  # {why['sums']}"] if loop.sums else []),
        f"guard Mask of loop i where it is all true  # {why['guard']}",
        f"roles producer ({producer} registers), consumer ({t.instances} along q, {consumer} registers)"
        f"  # {why['roles']}",
        *([f"ahead Q stages 2  # {why['ahead']}"] if t.ahead else []),
        f"overlap GEMM P, V of the previous tile with the {beside} of this one  # {why['overlap']}",
        *([f"rescale O under GEMM Q, K.T of the next tile  # {why['rescale']}"] if chosen["rescale"] else []),
        f"unswitch loop i  # {why['unswitch']}",
        *([f"pingpong consumer in loops  # {why['pingpong']}"] if turns else []),
        *([f"stage O through shared by tma  # {why['stage']}"] if t.staged else []),
        *skipping(spec),
        "grid longest first",
        *(["grid head fastest"] if counted else []),
        f"grid persistent{' by counter' if counted else ''}  # {why['grid']}",
    ]
    return t, reasons, lines


def approximation(function: str) -> Reason:
    """Say why a function is approximated."""
    error = APPROXIMATIONS[function][1]
    return Reason(
        function,
        "approximated",
        f"one instruction instead of two; at most {error:.2g} of its value off",
        {"error": error},
    )


def _uneven(spec: AttentionSpec) -> bool:
    """Tell whether the loop over keys is longer for some rows than for others: the mask speaks of rows."""
    condition = visible(spec)
    return condition is not None and "q" in names_in(condition)


def _turns(spec: AttentionSpec, t: GroupTiling, uneven: bool) -> bool:
    """Turns keep the instances apart; where two of them have tiles of unequal length, one would wait for the other."""
    return not uneven or t.instances > 2 or spec.Dv >= _TURNS_NEED


def _reasons(
    t: GroupTiling, choices: list[GroupTiling], uneven: bool, special: int, between: str, given: tuple[int, int]
) -> list[Reason]:
    """Give every reason there may be; `between` is what stands between the GEMMs."""
    runner = f"; next {choices[1].describe().split(':')[0]}: {choices[1].clocks_a_key:.0f}" if choices[1:] else ""
    tile = f"{t.clocks_a_key:.0f} clocks for 1,000 scores (predicted), bound by {t.bound}{runner}"
    figures: dict[str, float | str] = {
        "tensor": round(t.tensor, 1), "special": round(t.special, 1), "issue": round(t.issue, 1), "bound": t.bound,
        "model": "author/planner/groups.py", "kind": "prediction", **alternatives(choices),
    }  # fmt: skip
    producer, consumer = given
    threads = 128 * (producer + t.instances * consumer)
    grid = (
        "a block takes the next tile that nobody has, the longest first"
        if uneven
        else "all tiles are equally long: they are dealt in rounds, neighbours share K and V in the L2 cache"
    )
    return [
        Reason("tile", f"BM = {t.rows}, BN = {t.columns}", tile, figures),
        Reason(
            "ring", "K stages 2, V stages 2", f"{t.shared_bytes / 1024:.0f} KB of shared memory: one tile is read "
            "while the next arrives", {"shared_bytes": t.shared_bytes},
        ),
        Reason(
            "threshold", str(_THRESHOLD), f"O has {t.scaled:.1f} elements for one of S: scaled only where a maximum "
            f"has grown by 2^{_THRESHOLD}", {"elements": round(t.scaled, 2)},
        ),
        Reason(
            "sums", f"per lane{' running' if t.sums_run else ''}", "one addition across lanes a row, behind the loop"
            + ("; the exponentials bind, each is added as it is made" if t.sums_run else ""), {},
        ),
        Reason("guard", "Mask where it is all true", "only the tiles that the mask touches pay for it", {}),
        Reason(
            "roles", f"1 producer, {t.instances} consumers", f"one warpgroup copies, {t.instances} compute 64 rows "
            f"each: {threads:,} registers", {"registers": threads},
        ),
        Reason("ahead", "Q stages 2", "the next tile's Q, K and V arrive while this one is finished", {}),
        Reason(
            "overlap", "S before P V", "the tensor cores work meanwhile; P V takes "
            f"{t.second:.0f} clocks, the {between} {t.special:.0f}", {"second": round(t.second, 1)},
        ),
        Reason("rescale", "O under S", "the tensor cores work while O is scaled", {}),
        Reason("unswitch", "loop i", "the loop without the mask has no branch", {}),
        Reason(
            "pingpong", "in loops", f"one instance's {between} run under the other's GEMMs", {"uneven": str(uneven)}
        ),
        Reason("stage", "through shared by tma", "the store runs under the next tile", {"staged": str(t.staged)}),
        Reason("grid", "persistent", grid, {}),
        Reason("special", str(special), f"{special} special-function result(s) a score", {"special": special}),
    ]  # fmt: skip
