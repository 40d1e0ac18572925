"""`copies`: each Wait, Barrier and Commit that it puts in is needed, and the checker says so when one is gone."""

from __future__ import annotations

import pytest

from qimeng_attention.errors import Diagnostic
from qimeng_attention.schedule import schedule
from qimeng_attention.tl.checker import check_with_findings
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from schedule.small import MASKS, edit, scheduled_text

HOLD, STORE, OVER_K = "hold Q in register", "store O through shared over Q", "store O through shared over K"
SETTINGS = [  # stages of K and V, how far each is copied ahead, further choices
    (1, 1, 0, 0),
    (1, 1, 1, 0),
    (1, 1, 1, 0, STORE),
    (1, 1, 1, 1),
    (1, 1, 1, 1, HOLD, STORE),
    (1, 1, 0, 1),
    (2, 1, 1, 0),
    (2, 1, 1, 0, OVER_K),
    (2, 1, 2, 0),
    (1, 2, 0, 0),
    (1, 2, 0, 1, STORE),
    (1, 2, 1, 2),
    (2, 2, 0, 0, HOLD),
    (2, 2, 1, 0),
    (2, 2, 1, 1, STORE),
    (2, 2, 2, 1, HOLD),
    (2, 2, 2, 2),
    (2, 2, 2, 2, OVER_K),
    (3, 1, 2, 0),
    (3, 2, 2, 1),
]
IDS = ["-".join(str(x).split()[0] for x in setting) for setting in SETTINGS]


def scheduled(mode: str, k: int, v: int, k_ahead: int, v_ahead: int, *more: str) -> str:
    choices = [f"ring K stages {k}, V stages {v}", f"prefetch K {k_ahead} ahead, V {v_ahead} ahead", *more]
    return print_program(schedule(parse(scheduled_text(MASKS["full"], *choices, f"copies {mode}", "warps 2 along q"))))


def errors(text: str) -> list[Diagnostic]:
    return [d for d in check_with_findings(parse(text))[1] if d.severity == "error"]


def _is_sync(line: str) -> bool:
    return line.split("#")[0].strip() in ("Barrier", "Commit") or line.strip().startswith("Wait copies")


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_nothing_is_there_in_vain(mode: str, setting: tuple) -> None:
    text = scheduled(mode, *setting)
    lines = text.split("\n")
    places = [n for n, line in enumerate(lines) if _is_sync(line)]
    assert places
    assert errors(text) == []

    for n in places:
        found = errors("\n".join(lines[:n] + lines[n + 1 :]))

        assert found, f"line {n + 1} of\n{text}"
        for d in found:
            assert d.code in ("TL402", "TL403", "TL404", "TL405")
            assert d.span.line >= 1
            assert d.span.column >= 1


@pytest.mark.parametrize("setting", SETTINGS, ids=IDS)
def test_waiting_for_less_is_found(setting: tuple) -> None:
    text = scheduled("async", *setting)
    lines = text.split("\n")

    for n, line in enumerate(lines):
        if line.strip().startswith("Wait copies pending"):
            head, count = line.rsplit(" ", 1)
            looser = [*lines[:n], f"{head} {int(count) + 1}", *lines[n + 1 :]]

            assert "TL402" in {d.code for d in errors("\n".join(looser))} or "TL405" in {
                d.code for d in errors("\n".join(looser))
            }


def test_copies_far_ahead_stay_in_flight() -> None:
    text = scheduled("async", 2, 2, 2, 1)

    assert text.count("Wait copies pending 2\n") == 2
    assert text.count("# an empty group") == 2


def test_without_the_choice_there_is_nothing_to_wait_for() -> None:
    text = scheduled("sync", 1, 1, 0, 0)

    assert "Wait" not in text
    assert "Commit" not in text
    assert "async" not in text
    assert "Barrier" in text


def test_a_branch_around_an_iteration_holds_its_waits() -> None:
    guarded = edit(MASKS["full"], ("    Copy K (BN", "    if i % 2 < 2\n    Copy K (BN"))
    head, body = guarded.split("    if i % 2 < 2\n")
    inside, tail = body.split("end\n", 1)
    guarded = head + "    if i % 2 < 2\n" + "".join(f"    {line}\n" for line in inside.splitlines()) + "end\n" + tail

    for mode in ("async", "sync"):
        text = print_program(schedule(parse(scheduled_text(guarded, f"copies {mode}", "warps 2 along q"))))

        assert errors(text) == []
        assert "        Barrier\n" in text


TWICE = (
    "    Compute GEMM Q, K.T and get S\n",
    "    Compute GEMM Q, K.T and get S\n    Copy K (BN, D) in "
    "coordinate [batch, "
    "k = i * BN, head] from global to shared\n    Compute GEMM Q, K.T and get S\n",
)
NESTED = (
    "    Compute GEMM Q, K.T and get S\n",
    "    for j = 0 : 2\n        Copy K (BN, D) in coordinate [batch, "
    "k = i * BN, "
    "head] "
    "from global to shared\n        Compute GEMM Q, K.T and get S\n",
)
BRANCH = (
    "    Compute GEMM Q, K.T and get S\n",
    "    Compute GEMM Q, K.T and get S\n    if i > 0\n        Compute "
    "GEMM Q, K.T and "
    "get S\n"
    "    else\n        Copy K (BN, D) in coordinate [batch, k = i * BN, head] from global to shared\n"
    "        Compute GEMM Q, K.T and get S\n",
)


@pytest.mark.parametrize("mode", ["async", "sync"])
@pytest.mark.parametrize("change", [TWICE, NESTED, BRANCH], ids=["filled twice", "a loop in the loop", "a branch"])
def test_other_shapes_of_a_loop_are_safe_too(mode: str, change: tuple[str, str]) -> None:
    text = edit(MASKS["full"], change)
    assert errors(text) == []

    made = print_program(schedule(parse(scheduled_text(text, f"copies {mode}", "warps 2 along q"))))

    assert errors(made) == []


def test_a_program_that_waits_already_is_refused() -> None:
    text = edit(MASKS["full"], ("    Compute GEMM Q, K.T", "    Barrier\n    Compute GEMM Q, K.T"))

    assert schedule(parse(text)).kernels == parse(text).kernels  # scheduled code comes back as it is
