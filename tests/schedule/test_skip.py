"""`skip blocks past the end`: what is put under the condition, and where it finds no place."""

from __future__ import annotations

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import head, print_program
from qimeng_attention.tl.traverse import statements

SPEC = AttentionSpec.make(Hq=4, Hk=2, Dqk=64, mask="causal", varlen=True)


def code(target: str) -> str:
    return plan(SPEC, targets.get(target)).code


def test_all_that_a_block_does_stands_under_the_condition() -> None:
    kernel = schedule(parse(code("A100"))).kernels[0]

    guard = kernel.body[-1]
    assert isinstance(guard, s.If)
    assert head(guard) == "if block * BM < Sq"
    assert not any(isinstance(n, s.Copy | s.Gemm | s.Barrier | s.Commit) for n in kernel.body)
    assert not any(isinstance(n, s.Allocate) for n in statements(guard.body))


def test_each_role_skips_the_same_blocks_and_touches_no_ring_for_them() -> None:
    kernel = schedule(parse(code("H200"))).kernels[0]
    roles = [n for n in kernel.body if isinstance(n, s.Role)]

    for role in roles:
        loop = role.body[0]
        assert isinstance(loop, s.For)
        assert [head(n) for n in loop.body if isinstance(n, s.If)] == ["if block * BM < Sq"]
        assert not any(isinstance(n, s.Wait | s.Release | s.Copy) for n in loop.body)
    drained = roles[1].body[-1]
    assert isinstance(drained, s.Wait)
    assert drained.kind == "stores"


def test_instances_of_a_role_store_where_their_rows_lie_in_memory() -> None:
    text = print_program(schedule(parse(code("H200"))))

    assert "[q = block * BM + w * 64 : Sq at at_q + block * BM + w * 64, head] from shared to global Out" in text


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("[head, q = block * BM : Sq at", "[head, q = block * BM at"),  # this store goes on past the end
        ("[head, q = block * BM : Sq at", "[head, q = block * BM : Sq + 1 at"),
        ("skip blocks past the end", "skip blocks past the start"),
    ],
)
def test_a_kernel_that_may_store_from_such_a_block_is_refused(old: str, new: str) -> None:
    text = code("A100")
    assert old in text

    with pytest.raises(DiagnosticError) as refusal:
        schedule(parse(text.replace(old, new)))

    assert refusal.value.diagnostics[0].code in ("TL602", "TL603")


def test_rows_without_an_end_of_their_own_end_with_the_tensor() -> None:
    dense = plan(SPEC.model_copy(update={"varlen": False}), targets.get("A100")).code

    kernel = schedule(parse(dense + "    skip blocks past the end\n")).kernels[0]

    assert head(kernel.body[-1]) == "if block * BM < Sq"


def test_a_skipped_release_is_found_out() -> None:
    text = print_program(schedule(parse(code("H200"))))
    start = text.index("role consumer")
    unbalanced = text[:start] + text[start:].replace("if block * BM < Sq", "if block * BM < Sq - 1", 1)

    with pytest.raises(DiagnosticError) as refusal:
        check_text(unbalanced)

    assert refusal.value.diagnostics[0].code in ("TL404", "TL409", "TL401")
