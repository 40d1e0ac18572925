"""The lines of a Schedule block: what each writes, in which order, and how a wrong one is refused."""

from __future__ import annotations

import itertools

import pytest

from qimeng_attention.errors import Diagnostic, DiagnosticError
from qimeng_attention.schedule import DEFAULTS, REWRITINGS, schedule, steps
from qimeng_attention.tl import syntax as s
from qimeng_attention.tl.checker import check
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import choice_text, print_program
from qimeng_attention.tl.traverse import statements
from schedule.small import MASKS, edit, scheduled_text, text_of

CAUSAL = MASKS["causal"]


def refused(*choices: str, text: str = CAUSAL) -> list[Diagnostic]:
    with pytest.raises(DiagnosticError) as caught:
        schedule(parse(scheduled_text(text, *choices)))
    return caught.value.diagnostics


def made(*choices: str, text: str = CAUSAL) -> str:
    return print_program(schedule(parse(scheduled_text(text, *choices))))


# ------------------------------------------------------------------ refusals


def test_unknown_choices_are_all_named_with_the_nearest_form() -> None:
    found = refused("rinng K stages 2", "copies async", "flow K")

    assert [d.code for d in found] == ["TL601", "TL601"]
    assert found[0].hint == f"did you mean '{REWRITINGS['ring'].form}'?"
    assert "take one of approximate, ring," in found[1].hint
    assert found[1].span.line == found[0].span.line + 2


MALFORMED = [
    "ring K stages",
    "ring K stages two",
    "ring K 2",
    "ring",
    "ring K stages 2,",
    "ring K stages 2 V stages 2",
    "prefetch K 1",
    "prefetch K one ahead",
    "prefetch",
    "hold Q",
    "hold Q in shared",
    "sums",
    "sums per row",
    "store O",
    "store O through shared",
    "store O through shared over",
    "copies",
    "copies fast",
    "split loop i",
    "split i where Mask is not all true",
    "guard Mask of loop i",
    "warps 4",
    "warps four along q",
    "warps 4 along q, two blocks an SM",
    "grid",
    "grid longest last",
    "grid first",
    "warps 4 along q, 2 blocks",
    "unroll loop i",
    "unroll i by 2",
    "unroll loop i by two",
    "carry K",
    "carry K through shared",
    "carry through register",
    "carry K V through register",
    "carry K, through register",
]


@pytest.mark.parametrize("choice", MALFORMED)
def test_a_malformed_choice_is_shown_its_form(choice: str) -> None:
    (found,) = refused(choice)

    assert found.code == "TL602"
    assert found.hint == f"write it as `{REWRITINGS[choice.split()[0]].form}`"
    line = scheduled_text(CAUSAL, choice).split("\n")[found.span.line - 1]
    assert line[found.span.column - 1 : found.span.end_column - 1] == choice


UNFIT = {
    "ring W stages 2": "take one of K, Q, V",
    "ring Q stages 2": "remove it",
    "ring K stages 9": "take 1 to 8",
    "ring K stages 0": "take 1 to 8",
    "prefetch W 1 ahead": "take one of",
    "prefetch Q 1 ahead": "take one of",
    "prefetch K 2 ahead": "ring K stages 2",
    "hold K in register": "once, before the loop",
    "hold W in register": "once, before the loop",
    "store S through shared over Q": "name the stored tile",
    "store O through shared over W": "name the stored tile",
    "store O through shared over K": "larger tile",
    "split loop j where Mask is not all true": "name the variable",
    "guard Mask of loop j where it is all true": "name the variable",
    "unroll loop j by 2": "name the variable",
    "unroll loop i by 1": "from 2 to 16",
    "unroll loop i by 17": "from 2 to 16",
    "warps 4 along q": "fewer warps",
    "warps 2 along k": "name the axis",
    "warps 0 along q": "fewer warps",
    "grid row fastest": "take one of block, head, batch",
    "carry Q through register": "name one that a loop fills",
    "carry W through register": "name one that a loop fills",
    "carry K, K through register": "name one that a loop fills",
}


@pytest.mark.parametrize("choice", UNFIT)
def test_a_choice_that_does_not_fit_says_what_would(choice: str) -> None:
    (found,) = refused(choice)

    assert found.code == "TL603"
    assert UNFIT[choice] in found.hint
    assert found.span.line == CAUSAL.count("\n") + 3


@pytest.mark.parametrize(
    ("choice", "change"),
    [
        ("sums per lane", ("Allocate l in register (BM q) f32 = 0", "Allocate l in register (BM q) f32 = 1")),
        (
            "split loop i where Mask is not all true",
            (
                "    Compute Mask S where k <= q + Sk - Sq and k < Sk\n",
                "    Compute where(k < Sk, S, -inf) and get new S\n",
            ),
        ),
        ("prefetch K 1 ahead", ("0, Sk), BN)\n", "0, Sk), BN) down\n")),
    ],
)
def test_a_choice_without_its_pattern_is_refused(choice: str, change: tuple[str, str]) -> None:
    text = edit(CAUSAL, change)
    (found,) = refused(choice, text=text)

    assert found.code == "TL603"


def test_what_a_gpu_lacks_is_refused_at_a_line() -> None:
    text = edit(CAUSAL, ("for a100", "for t4")).replace("bf16", "fp16")

    found = refused("copies async", text=text)

    assert {d.code for d in found} == {"TL504"}
    assert all(d.span.line >= 1 for d in found)


def test_a_program_that_fails_the_checker_is_not_scheduled() -> None:
    assert {d.code for d in refused("copies async", text=edit(CAUSAL, ("K.T", "K")))} == {"TL202"}


# ------------------------------------------------------------------ steps


def test_steps_follow_the_order_of_the_table_and_print() -> None:
    text = text_of("gqa_causal")

    found = list(steps(parse(text)))

    order = list(REWRITINGS)
    names = [step.rewriting.name for step in found]
    assert names == sorted(names, key=order.index)
    assert names[0] == "explicit"
    for step in found:
        assert parse(print_program(step.after)) == step.after
        check(step.after, model=False)
    for one, other in itertools.pairwise(found):
        assert one.after == other.before


def test_each_step_leaves_the_choices_still_to_come() -> None:
    choices = ["ring K stages 2", "warps 2 along q", "copies async"]

    left = [
        [choice_text(c) for c in step.after.kernels[0].schedule]
        for step in steps(parse(scheduled_text(CAUSAL, *choices)))
    ]

    assert left == [
        ["ring K stages 2", "copies async", "warps 2 along q"],
        ["copies async", "warps 2 along q"],
        ["warps 2 along q"],
        [],
    ]


def test_a_step_can_be_continued_from() -> None:
    text = scheduled_text(CAUSAL, "ring K stages 2", "prefetch K 1 ahead", "copies async", "warps 2 along q")
    whole = schedule(parse(text))

    for step in steps(parse(text)):
        if step.rewriting.name != "copies" and step.after.kernels[0].schedule:
            assert schedule(step.after) == whole


def test_what_is_always_written_out_needs_no_line() -> None:
    assert [step.rewriting.name for step in steps(parse(CAUSAL))] == list(DEFAULTS)


def test_scheduled_code_comes_back_as_it_is() -> None:
    once = schedule(parse(scheduled_text(CAUSAL, "copies async", "warps 2 along q")))

    assert schedule(once) == once


def test_every_kernel_of_a_file_is_scheduled() -> None:
    both = parse(
        scheduled_text(CAUSAL, "copies async")
        + "\n"
        + scheduled_text(edit(CAUSAL, ("gqa_causal", "other")), "copies sync")
    )

    first, second = schedule(both).kernels

    assert not first.schedule
    assert not second.schedule
    assert any(isinstance(n, s.Commit) for n in statements(first.body))
    assert not any(isinstance(n, s.Commit) for n in statements(second.body))


# ------------------------------------------------------------------ what is written


def test_split_writes_bounds_with_the_names_of_the_program() -> None:
    text = made("split loop i where Mask is not all true")

    assert "Let masked = clamp(min((block * BM + Sk - Sq + 1) // BN, Sk // BN), 0, last)" in text
    assert text.count("Compute Mask") == 1


def test_split_of_a_window_has_three_parts() -> None:
    first = "max(0, block * BM + Sk - Sq - 20) // BN"
    text = made("split loop i where Mask is not all true", text=MASKS["window"])

    loops = [line.split("  #")[0] for line in text.split("\n") if line.startswith("for ")]
    assert f"Let first = {first}\n" in text
    assert loops == ["for i = first : unmasked", "for i = unmasked : masked", "for i = masked : last"]
    assert text.count("Compute Mask") == 2


def test_split_of_a_descending_loop_keeps_its_order() -> None:
    text = made("split loop i where Mask is not all true", text=edit(CAUSAL, ("0, Sk), BN)\n", "0, Sk), BN) down\n")))

    loops = [line.split("  #")[0] for line in text.split("\n") if line.startswith("for ")]
    assert loops == ["for i = masked : last down", "for i = 0 : masked down"]


def test_a_new_name_gives_way_to_the_program_s() -> None:
    text = edit(CAUSAL, ("Copy Q (BM", "Let last = 3\nLet masked = last\nCopy Q (BM"))

    written = made("split loop i where Mask is not all true", text=text)

    assert "Let last_ = " in written
    assert "Let masked_ = " in written


def test_grid_puts_long_loops_first() -> None:
    assert "block = 0 : ceildiv(Sq, BM) down" in made("grid longest first")
    assert "down" not in made("grid longest first", text=MASKS["full"])
    assert "Grid head = 0 : Hq, block" in made("grid head fastest")


def test_comments_of_a_moved_copy_stay() -> None:
    text = edit(CAUSAL, ("    Copy K (BN", "    # why K\n    Copy K (BN"))

    assert "# why K" in made("ring K stages 2", "prefetch K 1 ahead", text=text)


@pytest.mark.parametrize("name", REWRITINGS)
def test_the_table_has_words_for_every_rewriting(name: str) -> None:
    rewriting = REWRITINGS[name]

    assert rewriting.name == name
    assert rewriting.example.split()[0] == name
    assert rewriting.form.split()[0] == name
    assert rewriting.doc.endswith(".")
    assert rewriting.kind in ("exact", "reassociating", "approximate")
