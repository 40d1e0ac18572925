"""`rescale O under GEMM Q, K.T of the next tile`: the factor reaches the accumulator late (exact).

In a pipelined loop (`overlap`) the accumulator is multiplied by its factor at the end of an iteration, with the tensor
cores idle. Here it is multiplied where the next iteration has started its first GEMM, and before the last P V: always
just before the GEMM that adds to it.
"""

from __future__ import annotations

from dataclasses import replace

from qimeng_attention.schedule.rewriting import Rewriting, malformed, touches, unfit, with_body, written_by
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.printer import head
from qimeng_attention.tl.traverse import map_blocks, names_in, statements
from qimeng_attention.tl.types import Checked

FORM = "rescale TILE under GEMM TILE, TILE of the next tile"
_BEHIND = ("of", "the", "next", "tile")


def apply(kernel: s.Kernel, choice: s.Choice, checked: Checked) -> s.Kernel:
    """Move the tile's scaling in the pipelined loop that makes the named GEMM."""
    words = choice.words
    if words[2:4] != ("under", "GEMM") or words[-4:] != _BEHIND or len(words) not in (11, 12) or words[5] != ",":
        raise malformed(choice, FORM)
    tile, first = words[1], (words[4], "".join(words[6:-4]))
    for number, role in enumerate(kernel.body):
        if not isinstance(role, s.Role):
            continue
        body = _moved(role.body, tile, first, choice)
        if body != role.body:
            return with_body(kernel, (*kernel.body[:number], replace(role, body=body), *kernel.body[number + 1 :]))
    raise unfit(
        choice,
        f"no loop starts GEMM {first[0]}, {first[1]} beside a GEMM that adds to {tile}, and scales {tile} at its end",
        "choose `overlap` too",
    )


def _moved(
    body: tuple[s.Statement, ...], tile: str, first: tuple[str, str], choice: s.Choice
) -> tuple[s.Statement, ...]:
    """Find the pipelined loop; its first iteration stands before it, its last GEMM behind the block around both."""
    made = list(body)
    for position, n in enumerate(made):
        if isinstance(n, s.For) and not n.ranges:
            made[position] = replace(n, body=_moved(n.body, tile, first, choice))
        if not isinstance(n, s.If) or not n.body or not isinstance(n.body[-1], s.For):
            continue
        loop = n.body[-1]
        scalings = [x for x in loop.body if isinstance(x, s.Compute) and _scales(x, tile)]
        starts = [i for i, x in enumerate(loop.body) if _is(x, first)]
        behind = [i for i, x in enumerate(made) if i > position and isinstance(x, s.If) and _adds(x, tile)]
        if len(scalings) != 1 or len(starts) != 1 or not behind or _makes(loop.body[starts[0]], tile):
            continue
        (scaling,) = scalings
        inside = [x for x in loop.body if x is not scaling]
        inside.insert(starts[0] + 1, scaling)
        place = next(i for i, x in enumerate(loop.body) if x is scaling)
        if not any(isinstance(x, s.Wait) and x.kind == "gemm" for x in loop.body[:place]):
            raise unfit(choice, f"{tile} is scaled before the loop waits for its GEMMs", "write this choice once")
        _check(loop, scaling, starts[0], choice)
        _alone(_later(n.body[:-1], scaling), loop.body[place + 1 :], made[position + 1 : behind[0]], scaling, choice)
        early = map_blocks(n.body[:-1], lambda x, scaled=scaling: None if _same(x, scaled) else x)  # type: ignore[misc]
        made[position] = replace(n, body=(*early, replace(loop, body=tuple(inside))))
        last = made[behind[0]]
        assert isinstance(last, s.If)
        made[behind[0]] = replace(last, body=_before_gemm(last.body, scaling))
        break
    return tuple(made)


def _check(loop: s.For, scaling: s.Compute, start: int, choice: s.Choice) -> None:
    """The factor must still be the one of the iteration before: nothing up to the first GEMM may write it."""
    read = names_in(scaling.value) - {scaling.out}
    written = {x.out for n in loop.body[: start + 1] for x in statements((n,)) if isinstance(x, s.Compute | s.Gemm)}
    if read & written:
        names = ", ".join(sorted(read & written))
        raise unfit(choice, f"{names} is computed before the first GEMM", "remove this choice")


def _later(body: tuple[s.Statement, ...], scaling: s.Compute) -> tuple[s.Statement, ...]:
    """Give what stands behind the first tile's scaling."""
    at = next((i for i, x in enumerate(body) if _same(x, scaling)), len(body))
    return body[at + 1 :]


def _alone(
    early: tuple[s.Statement, ...],
    late: tuple[s.Statement, ...],
    between: list[s.Statement],
    scaling: s.Compute,
    choice: s.Choice,
) -> None:
    """Nothing may use the tile where it is not scaled yet, or change what the factor reads."""
    factor = names_in(scaling.value) - {scaling.out}
    for n in (*early, *late, *between):
        written = set().union(*[written_by(x) for x in statements((n,))])
        if scaling.out in touches(n) or written & factor:
            raise unfit(
                choice, f"a statement behind `{head(scaling)}` needs {scaling.out} scaled, or changes its factor",
                "remove this choice",
            )  # fmt: skip


def _before_gemm(body: tuple[s.Statement, ...], scaling: s.Compute) -> tuple[s.Statement, ...]:
    at = next(i for i, x in enumerate(body) if isinstance(x, s.Gemm))
    return (*body[:at], scaling, *body[at:])


def _scales(n: s.Compute, tile: str) -> bool:
    """Match `tile = tile * factor`, and the same where a condition of its rows holds (`threshold`)."""
    value = n.value
    if isinstance(value, s.Call) and value.function == "where" and value.args[2] == s.Name(tile):
        value = value.args[1]
    return n.out == tile and isinstance(value, s.Binary) and value.op == "*" and value.left == s.Name(tile)


def _same(n: s.Statement, scaling: s.Compute) -> bool:
    return isinstance(n, s.Compute) and (n.out, n.value) == (scaling.out, scaling.value)


def _is(n: s.Statement, names: tuple[str, str]) -> bool:
    shown = (f"{o.name}{'.T' if o.transposed else ''}" for o in (n.a, n.b)) if isinstance(n, s.Gemm) else ()
    return isinstance(n, s.Gemm) and n.asynchronous and tuple(shown) == names


def _makes(n: s.Statement, tile: str) -> bool:
    return isinstance(n, s.Gemm) and n.out == tile


def _adds(n: s.If, tile: str) -> bool:
    return any(isinstance(x, s.Gemm) and x.out == tile for x in n.body)


REWRITING = Rewriting(
    "rescale",
    FORM,
    "rescale O under GEMM Q, K.T of the next tile",
    "Multiplies the accumulator by its factor while the next tile's first GEMM runs, instead of at the end of a tile.",
    "exact",
    apply,
)
