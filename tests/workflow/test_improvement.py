"""Rounds of improvement: what a model is told, what is refused, and that only what is faster for sure is kept."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from qimeng_attention.author.llm.rescheduled import bare
from qimeng_attention.bench.race import BEST, CALL, CANDIDATE, TIMING, Race, digests_in
from qimeng_attention.errors import BundleError, JudgeError, SpecError
from qimeng_attention.llm.chat import Reply, Request, Waiting
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow import improvement, run
from qimeng_attention.workflow.attempts import Truth
from qimeng_attention.workflow.improvement import RECORD, Asking, Improved, improve
from qimeng_attention.workflow.races import Races
from qimeng_attention.workflow.stages import Results

SPEC = AttentionSpec.make(name="rounds", Hq=2, Dqk=64, mask="window:31")
SIZES = {"B": 2, "S": 512}
THREE = "producer (32 registers), consumer (3 along q, 160 registers)"
TWO = "producer (24 registers), consumer (2 along q, 240 registers)"
TILES = "Tile BM = 192, BN = 128"
pytestmark = pytest.mark.cuda


@pytest.fixture(scope="module")
def start() -> Results:
    return run(SPEC, target="H200", until="cubin").results


def changed(program: str, *edits: tuple[str, str]) -> str:
    """Answer with a program in which lines are others."""
    for old, new in edits:
        assert old in program
        program = program.replace(old, new)
    return f"It waits for copies, so smaller tiles.\n```tl\n{program}```\n"


def smaller(start: Results) -> str:
    return changed(bare(start.code), (TILES, "Tile BM = 128, BN = 64"), (THREE, TWO))


def narrower(start: Results) -> str:
    return changed(bare(start.code), (TILES, "Tile BM = 192, BN = 64"))


class Answers:
    """A client that gives answers by what is asked: the same to the same, None while nobody has answered."""

    name = "answers"

    def __init__(self, *texts: str, known: int = 99) -> None:
        self.texts, self.known, self.asked = texts, known, list[Request]()
        self._of: dict[str, str] = {}

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        if request.digest not in self._of:
            if len(self._of) >= self.known:
                raise Waiting("no answer yet")
            self._of[request.digest] = self.texts[len(self._of)]
        return Reply(self._of[request.digest], "a model")


def timing(place: Path, ratio: float, *, spread: float = 0.002, noise: float = 0.001, error: str = "") -> Race:
    """Give what a race might find: rounds spread around a ratio, and the best against itself around 1."""
    draw = random.Random(7)
    bundles = digests_in(place)
    pair = CANDIDATE in bundles
    return Race(
        bundles=bundles,
        sizes=json.loads((place / CALL).read_text()),
        device="NVIDIA H200",
        driver="1",
        torch="2",
        date="2026-11-28",
        clock_mhz=1500,
        ms={BEST: 0.1} | ({CANDIDATE: round(0.1 / ratio, 6)} if pair else {}),
        same=tuple(1 + noise * draw.gauss(0, 1) for _ in range(61)),
        ratios=tuple(ratio * (1 + spread * draw.gauss(0, 1)) for _ in range(61)) if pair and not error else (),
        flops=1e9,
        verdict="accepted",
        error=error if pair else "",
    )


def measured(ratios: Mapping[str, float], **more: float | str) -> Callable[[Path], Race]:
    """Time by the tiles of the candidate, over those of the best."""

    def speed(folder: Path) -> float:
        code = (folder / "code.tl").read_text()
        return next((r for tiles, r in ratios.items() if tiles in code), 1.0)

    def measure(place: Path) -> Race:
        ratio = speed(place / CANDIDATE) / speed(place / BEST) if (place / CANDIDATE).exists() else 1.0
        race = timing(place, ratio, **more)  # type: ignore[arg-type]
        (place / TIMING).write_text(race.model_dump_json())
        return race

    return measure


def rounds(
    start: Results,
    client: Answers,
    folder: Path,
    measure: Callable[[Path], Race] | None,
    number: int = 1,
    note: Callable[..., None] | None = None,
) -> Improved:
    asking = Asking(client, number, Races(folder / "races", SIZES, measure), folder=folder, note=note)
    return improve(start, Truth(spec=SPEC), asking)


# ------------------------------------------------------------------ what is kept
def test_a_faster_program_is_kept_a_slower_one_is_not_and_both_are_told(start: Results, tmp_path: Path) -> None:
    client = Answers(narrower(start), smaller(start), changed(bare(start.code), ("    unswitch loop i\n", "")))
    made = rounds(start, client, tmp_path, measured({"BM = 128": 1.3, "BN = 64": 0.9}), 3)

    assert [r.kept for r in made.rounds] == [False, True, False]
    assert made.rounds[0].changes == ["- Tile BN = 128", "+ Tile BN = 64"]
    assert made.rounds[1].why == "It waits for copies, so smaller tiles."
    second, third = (r.messages[0].text for r in client.asked[1:])
    assert "Round 1: - Tile BN = 128; + Tile BN = 64. 0.900 times as fast" in second
    assert "dropped" in second
    assert "Tile BM = 192, BN = 128" in second  # the fastest so far
    assert "Tile BM = 128, BN = 64" in third.split("# What was measured")[0]
    assert "kept." in third
    assert made.gain == pytest.approx(1.3, rel=0.01)


def test_a_bundle_says_who_improved_it_and_every_round(start: Results, tmp_path: Path) -> None:
    measure = measured({"BM = 128": 1.3})
    made = rounds(start, Answers(smaller(start)), tmp_path, measure)
    record = json.loads((tmp_path / RECORD).read_text())
    reasons = made.results.reasons or {}

    assert reasons["author"] == "planner, improved by a model"
    assert reasons["improved"] == record
    assert reasons["reasons"] == []  # the planner's were for its own tiles
    assert record["rounds"][0]["ratio"] == pytest.approx(1.3, rel=0.01)
    assert record["gain"] == pytest.approx(1.3, rel=0.01)
    assert "# The score" not in made.best.code
    assert "# rounds: 2 query heads" in made.best.code  # the program's own comments stay
    worse = rounds(start, Answers(narrower(start)), tmp_path / "worse", measured({"BN = 64": 0.9}))
    assert worse.best is start
    assert worse.gain == 1.0
    assert (worse.results.reasons or {})["author"] == "planner"
    assert (worse.results.reasons or {})["reasons"]


@pytest.mark.parametrize(
    ("ratio", "more"),
    [
        (1.004, {}),  # too little to tell from other places in memory
        (1.02, {"spread": 0.1}),  # rounds that differ more than the gain
        (1.02, {"noise": 0.12}),  # the same kernel differs as much from itself
        (1.3, {"error": "the judge on the GPU: rejected"}),
    ],
)
def test_noise_is_no_gain(start: Results, tmp_path: Path, ratio: float, more: dict[str, float | str]) -> None:
    made = rounds(start, Answers(smaller(start)), tmp_path, measured({"BM = 128": ratio}, **more))

    assert not made.rounds[0].kept
    assert made.best is start
    assert "ropped" in made.rounds[0].outcome


def test_rounds_that_together_gain_nothing_are_given_up(start: Results, tmp_path: Path) -> None:
    third = changed(bare(start.code), (TILES, "Tile BM = 128, BN = 96"), (THREE, TWO))

    def measure(place: Path) -> Race:
        last = place.joinpath(CANDIDATE, "code.tl").read_text() if (place / CANDIDATE).exists() else ""
        first = TILES in (place / BEST / "code.tl").read_text()
        return timing(place, 0.99 if first and "BN = 96" in last else 1.1)

    made = rounds(start, Answers(smaller(start), third), tmp_path, measure, 2)

    assert [r.kept for r in made.rounds] == [True, True]
    assert made.best is start
    assert made.gain == 1.0


# ------------------------------------------------------------------ what is refused
def test_what_a_gate_refuses_may_be_mended_once_and_is_told_to_the_next_round(start: Results, tmp_path: Path) -> None:
    code = bare(start.code)
    too_large = changed(code, (TILES, "Tile BM = 192, BN = 256"))
    client = Answers(too_large, smaller(start), "no program", "again none", too_large, too_large)
    made = rounds(start, client, tmp_path, measured({"BM = 128": 1.3}), 3)

    assert [[bool(a.failed) for a in r.attempts] for r in made.rounds] == [[True, False], [True, True], [True, True]]
    assert [r.kept for r in made.rounds] == [True, False, False]
    assert [r.stage for r in client.asked][:3] == ["improve 1", "improve 1 repair 1", "improve 2"]
    assert "The program was refused" in client.asked[1].messages[-1].text
    assert "Round 2: no program. Refused (answer): " in client.asked[-1].messages[0].text
    assert made.rounds[2].outcome.startswith("Refused (")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("k < Sk\n", "k < Sk + 1\n", "`Compute Mask S where"),
        ("Compute where(l == 0, 0, O / l) and get new O\n", "", "is missing"),
        (TILES, "Tile BM = 192, BN = 128, BX = 2", "`Tile BM = ..., BN = ..., BX = ...` stands where"),
        ("Schedule\n", "Compute O * 2 and get new O\n\nSchedule\n", "is no line of the program"),
        (" = -inf\n", " = 0\n", "Allocate m"),
    ],
)
def test_another_statement_is_refused_and_named(start: Results, tmp_path: Path, old: str, new: str, said: str) -> None:
    answer = changed(bare(start.code), (old, new))
    made = rounds(start, Answers(answer, answer), tmp_path, measured({}))

    assert made.rounds[0].attempts[0].failed == "statements"
    assert made.rounds[0].attempts[0].codes == ("LM320",)
    assert said in made.rounds[0].attempts[0].findings


def test_what_was_tried_is_refused(start: Results, tmp_path: Path) -> None:
    same = changed(bare(start.code))
    client = Answers(narrower(start), same, narrower(start))
    made = rounds(start, client, tmp_path, measured({"BN = 64": 0.9}), 2)

    assert [a.codes for a in made.rounds[1].attempts] == [("LM321",), ("LM321",)]
    assert "was tried in round 1" in made.rounds[1].attempts[1].findings


def test_a_prompt_tells_nothing_that_the_planner_thought_of_other_tiles(start: Results, tmp_path: Path) -> None:
    client = Answers(narrower(start))
    rounds(start, client, tmp_path, measured({"BN = 64": 0.9}))
    told = client.asked[0].messages[0].text

    assert "next 192" in start.code or "predicted" in start.code
    assert "predicted" not in told
    assert "next 1" not in told
    assert "instances:" not in told
    assert "#" not in told.split("```")[1]


# ------------------------------------------------------------------ stops
def test_a_run_stopped_at_every_step_ends_as_one_that_never_stopped(
    start: Results, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = (narrower(start), smaller(start))
    measure = measured({"BM = 128": 1.3, "BN = 64": 0.9})
    straight = rounds(start, Answers(*texts), tmp_path / "straight", measure, 2)
    judged, judge = list[str](), improvement.judge_on_cpu
    monkeypatch.setattr(improvement, "judge_on_cpu", lambda r, t: (judged.append(r.scheduled), judge(r, t))[1])
    client, folder, stops = Answers(*texts, known=0), tmp_path / "stopped", 0
    made, notes = None, list[dict[str, object]]()
    while made is None:
        try:
            made = rounds(start, client, folder, None, 2, lambda about, **facts: notes.append(facts))
        except Waiting as fault:
            stops += 1
            if place := fault.details.get("folder"):
                measure(Path(place))
            else:
                client.known += 1

    assert stops == 2 + 3  # answers; the first program, and each proposal against it
    assert (folder / RECORD).read_text() == (tmp_path / "straight" / RECORD).read_text()
    assert notes == made.to_json()["rounds"]  # each once
    assert made.gain == straight.gain
    assert made.best.code == straight.best.code
    assert len(judged) == 2  # each proposal once, however often the run began


def test_a_timing_of_something_else_is_refused(start: Results, tmp_path: Path) -> None:
    def waiting() -> Path:
        with pytest.raises(Waiting, match="has not been timed yet") as fault:
            rounds(start, Answers(smaller(start)), tmp_path, None)
        return Path(fault.value.details["folder"])

    first = waiting()
    good = timing(first, 1.0)
    for change, said in (
        ({"bundles": {BEST: "0" * 64}}, "stale: it is of another best"),
        ({"sizes": {"B": 1, "S": 512}}, "stale: it is of other calls"),
        ({"same": (1.0,) * 5}, "fewer than 20 rounds"),
    ):
        (first / TIMING).write_text(good.model_copy(update=change).model_dump_json())
        with pytest.raises(BundleError, match=said):
            rounds(start, Answers(smaller(start)), tmp_path, None)
    (first / TIMING).write_text("{}")
    with pytest.raises(BundleError, match="is no timing"):
        rounds(start, Answers(smaller(start)), tmp_path, None)
    (first / TIMING).write_text(good.model_dump_json())
    second = waiting()
    assert {p.name for p in second.iterdir()} == {BEST, CANDIDATE, CALL}
    (second / TIMING).write_text(timing(first, 1.3).model_dump_json())
    with pytest.raises(BundleError, match="stale: it is of another candidate"):
        rounds(start, Answers(smaller(start)), tmp_path, None)


def test_what_cannot_be_timed_is_refused_before_anybody_is_asked(start: Results, tmp_path: Path) -> None:
    client = Answers()
    for sizes, said in (({"B": 1}, "how large Sq is"), ({"S": 64}, "how large B is")):
        with pytest.raises(SpecError, match=said):
            improve(start, Truth(spec=SPEC), Asking(client, 1, Races(tmp_path, sizes)))

    def rejected(place: Path) -> Race:
        return timing(place, 1.0).model_copy(update={"verdict": "rejected"})

    with pytest.raises(JudgeError, match="rejected on the GPU"):
        rounds(start, client, tmp_path, rejected)
    assert not client.asked
