"""What scheduled code needs to be correct when many warps run it: waits, releases, groups of copies, barriers, fences."""

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
    if n.count is not None and scope.type_of(n.count, n.span).kind != "int":
        scope.report("TL107", n.span, "the count of a Wait is an integer", "use integer arithmetic")


def _check_ring(ring: str, n: s.Statement, scope: Scope) -> None:
    if ring not in scope.tiles or scope.tiles[ring].space != "shared":
        scope.unknown(ring, n.span, [t.name for t in scope.tiles.values() if t.space == "shared"], "ring")


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
    return None


def _wait_full(n: s.Wait, t: Strand) -> Generator[Span | None, None, None]:
    assert n.ring is not None
    slots = t.block.shared[n.ring]
    use = t.cursor.get((n.ring, "consumer"), 0)
    slot = slots[use % len(slots)]
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


def _wait_turn(n: s.Wait, t: Strand) -> Generator[Span | None, None, None]:
    mine = t.integer(n.count or s.Num(0), n.span)
    while t.block.turn != mine:
        yield n.span


def _wait_gemm(pending: int, t: Strand) -> None:
    while len(t.gemms) > pending:
        name, slots = t.gemms.pop(0)
        for slot in slots:
            slot.reading -= 1
        if not any(out == name for out, _ in t.gemms):
            t.registers[name].pending = False


def _wait_copies(pending: int, t: Strand) -> None:
    block = t.block
    block.groups_done = max(block.groups_done, block.open_group - pending)
    for slots in block.shared.values():
        for slot in slots:
            if slot.state == "in flight" and 0 <= slot.group < block.groups_done:
                slot.state = "landed"


def _check_release(n: s.Release, scope: Scope) -> None:
    _check_ring(n.ring, n, scope)


def _run_release(n: s.Release, t: Strand) -> None:
    slots = t.block.shared[n.ring]
    use = t.cursor.get((n.ring, "consumer"), 0)
    slot = slots[use % len(slots)]
    if any(slot in held for _, held in t.gemms):
        raise Fault("TL404", n.span, f"{n.ring} is released while this role's asynchronous GEMM may " "still read it",
                    "put `Wait gemm pending ...` before this line")  # fmt: skip
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
    t.block.turn = (t.block.turn + 1) % t.block.turns


def _run_commit(n: s.Commit, t: Strand) -> None:
    t.block.open_group += 1


def _run_barrier(n: s.Barrier, t: Strand) -> None:
    if t.block.strands > 1:
        raise Fault("TL701", n.span, "Barrier inside a role is not supported yet", "use rings between roles")
    for slots in t.block.shared.values():
        for slot in slots:
            slot.read = False
            if slot.state == "landed":
                slot.state = "ready"


def _check_fence(n: s.Fence, scope: Scope) -> None:
    if n.kind != "async":
        scope.unknown(n.kind, n.span, ["async"], "fence")


def _no_check(n: s.Statement, scope: Scope) -> None:
    return None


def _no_run(n: s.Statement, t: Strand) -> None:
    return None


RULES = {
    s.Wait: Rule("Wait", "Wait", "Wait copies pending 1",
                 "Blocks until a ring's slot is full or empty, a turn comes, or at most so many GEMMs or " "groups of copies " "are " "in flight.",
                 _check_wait, _run_wait, "scheduled"),
    s.Release: Rule("Release", "Release", "Release K", "Says that this role has read the ring's slot for " "the last time.",
                    _check_release, _run_release, "scheduled"),
    s.PassTurn: Rule("Pass", "Pass", "Pass turn", "Lets the next instance of the role issue its GEMMs.", _no_check, _run_pass, "scheduled"),
    s.Commit: Rule("Commit", "Commit", "Commit", "Closes a group of asynchronous copies; an empty group " "counts too.",
                   _no_check, _run_commit, "scheduled"),
    s.Barrier: Rule("Barrier", "Barrier", "Barrier", "All threads of the block meet, and see each " "other's writes to " "shared memory.",
                    _no_check, _run_barrier, "scheduled"),
    s.Fence: Rule("Fence", "Fence", "Fence async", "Shows writes to shared memory to the copy engine and " "the tensor cores.",
                  _check_fence, _no_run, "scheduled"),
}  # fmt: skip
