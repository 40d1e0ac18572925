"""What scheduled code needs to be correct when many warps run it: waits, releases, groups of copies, barriers,
fences."""

from __future__ import annotations

from collections.abc import Generator

from qimeng_attention.errors import Span
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.machine import Fault, Strand
from qimeng_attention.tl.scope import Scope
from qimeng_attention.tl.statements.rule import Rule

RING_ENDS = ("full", "empty")


def _check_wait(n: s.Wait, scope: Scope) -> None:
    if n.ring is not None:
        if n.kind not in RING_ENDS:
            scope.unknown(n.kind, n.span, list(RING_ENDS), "end of a ring")
        _check_ring(n.ring, n, scope)
        scope.require("mbarrier", n.span, "a ring", "use Commit, `Wait copies pending ...` and Barrier")
    if n.count is not None:
        scope.uniform_integer(n.count, n.span, "the count of a Wait")
        if (scope.constant(n.count) or 0) < 0:
            scope.report(
                "TL103",
                n.span,
                f"a Wait leaves {scope.constant(n.count)} in flight, expected 0 or more",
                "write `pending 0` to wait for all",
            )


def _check_ring(ring: str, n: s.Statement, scope: Scope) -> None:
    rings = [t.name for t in scope.tiles.values() if t.space == "shared" and t.view is None]
    if ring not in rings:
        scope.unknown(ring, n.span, rings, "ring")


def _run_wait(n: s.Wait, t: Strand) -> Generator[Span | None, None, None] | None:
    if n.kind == "full":
        return _wait_full(n, t)
    if n.kind == "empty":
        return _wait_empty(n, t)
    if n.kind == "turn":
        return _wait_turn(n, t)
    count = t.integer(n.count or s.Num(0), n.span)
    if n.kind == "gemm":
        _wait_gemm(count, t)
    elif n.kind == "copies":
        _wait_copies(count, t)
    else:
        _wait_stores(count, t)
    return None


def _wait_full(n: s.Wait, t: Strand) -> Generator[Span | None, None, None]:
    assert n.ring is not None
    slots = t.block.shared[n.ring]
    use = t.cursor.get((n.ring, "consumer"), 0)
    slot = slots[use % len(slots)]
    if t.waited.get(n.ring, 0) > use:
        raise Fault(
            "TL404",
            n.span,
            f"{n.ring}.full is waited for again before this role released {n.ring}",
            f"pair each `Wait {n.ring}.full` with one `Release {n.ring}`",
        )
    t.places[n.ring] = n.span
    while slot.fills <= use // len(slots):
        yield n.span
    t.waited[n.ring] = use + 1


def _wait_empty(n: s.Wait, t: Strand) -> Generator[Span | None, None, None]:
    assert n.ring is not None
    slots = t.block.shared[n.ring]
    use = t.cursor.get((n.ring, "producer"), 0)
    slot = slots[use % len(slots)]
    while slot.releases < (use // len(slots)) * t.block.consumers.get(n.ring, 1):
        yield n.span
    t.emptied[n.ring] = use + 1


def _wait_turn(n: s.Wait, t: Strand) -> Generator[Span | None, None, None]:
    mine = t.integer(n.count or s.Num(0), n.span)
    while t.block.turn != mine:
        yield n.span


def _wait_gemm(pending: int, t: Strand) -> None:
    while len(t.gemms) > pending:
        done = t.gemms.pop(0)
        for slot in done.slots:
            slot.reading -= 1
        if not any(g.out == done.out for g in t.gemms):
            t.registers[done.out].pending = False


def _wait_copies(pending: int, t: Strand) -> None:
    block = t.block
    block.groups_done = max(block.groups_done, block.open_group - pending)
    for slots in block.shared.values():
        for slot in slots:
            if slot.state == "in flight" and 0 <= slot.group < block.groups_done:
                slot.state = "landed"


def _wait_stores(pending: int, t: Strand) -> None:
    """Only the thread that issued the stores knows now: the role's other warps learn it at its next Barrier."""
    while len(t.stores) > pending:
        _, slot, _ = t.stores.pop(0)
        slot.reading -= 1
        slot.read = True


def _check_release(n: s.Release, scope: Scope) -> None:
    _check_ring(n.ring, n, scope)


def _run_release(n: s.Release, t: Strand) -> None:
    slots = t.block.shared[n.ring]
    use = t.cursor.get((n.ring, "consumer"), 0)
    slot = slots[use % len(slots)]
    if any(slot in g.slots for g in t.gemms):
        raise Fault(
            "TL404",
            n.span,
            f"{n.ring} is released while this role's asynchronous GEMM may still read it",
            "put `Wait gemm pending ...` before this line",
        )
    if t.waited.get(n.ring, 0) <= use:
        raise Fault(
            "TL404",
            n.span,
            f"{n.ring} is released without having been waited for",
            f"pair each Release with a `Wait {n.ring}.full`",
        )
    slot.releases += 1
    t.cursor[(n.ring, "consumer")] = use + 1


def _run_pass(n: s.PassTurn, t: Strand) -> None:
    if t.block.turn != t.instance:
        raise Fault(
            "TL411",
            n.span,
            f"{t.name} {t.instance} passes on a turn that it does not have",
            "put `Wait turn ...` before this line",
        )
    t.block.turn = (t.block.turn + 1) % t.block.turns


def _run_commit(n: s.Commit, t: Strand) -> None:
    t.block.open_group += 1


def _run_barrier(n: s.Barrier, t: Strand) -> None:
    """The warps of the block meet, or those of one instance of a role, who then see each other's writes."""
    for slots in t.block.shared.values():
        for slot in slots:
            if t.block.strands > 1 and slot.writer is not t:
                continue
            slot.read = False
            if slot.state == "landed":
                slot.state = "ready"


def _check_fence(n: s.Fence, scope: Scope) -> None:
    if n.kind != "async":
        scope.unknown(n.kind, n.span, ["async"], "fence")


def _run_fence(n: s.Fence, t: Strand) -> None:
    """Each thread fences its own writes: a fence behind the barrier would leave out those of the other warps."""
    for slots in t.block.shared.values():
        for slot in slots:
            if slot.state == "landed" and (t.block.strands == 1 or slot.writer is t):
                slot.fenced = True


def _no_check(n: s.Statement, scope: Scope) -> None:
    return None


RULES = {
    s.Wait: Rule(
        "Wait",
        "Wait",
        "Wait copies pending 1",
        "Blocks until a ring's slot is full or empty, a turn comes, or at most so many GEMMs or "
        "groups of copies "
        "are "
        "in flight.",
        _check_wait,
        _run_wait,
        "scheduled",
    ),
    s.Release: Rule(
        "Release",
        "Release",
        "Release K",
        "Says that this role has read the ring's slot for the last time.",
        _check_release,
        _run_release,
        "scheduled",
    ),
    s.PassTurn: Rule(
        "Pass",
        "Pass",
        "Pass turn",
        "Lets the next instance of the role issue its GEMMs.",
        _no_check,
        _run_pass,
        "scheduled",
    ),
    s.Commit: Rule(
        "Commit",
        "Commit",
        "Commit",
        "Closes a group of asynchronous copies; an empty group counts too.",
        _no_check,
        _run_commit,
        "scheduled",
    ),
    s.Barrier: Rule(
        "Barrier",
        "Barrier",
        "Barrier",
        "The threads of the block, or of one instance of a role, meet and see each other's writes to shared memory.",
        _no_check,
        _run_barrier,
        "scheduled",
    ),
    s.Fence: Rule(
        "Fence",
        "Fence",
        "Fence async",
        "Shows each thread's writes to shared memory to the copy engine and the tensor cores; a Barrier "
        "stands behind it.",
        _check_fence,
        _run_fence,
        "scheduled",
    ),
}
