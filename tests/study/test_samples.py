"""Samples on disk: each once, whole, and found again after any interruption."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from qimeng_attention.errors import SpecError
from qimeng_attention.study.record import GATES, Attempt, Sample, outcomes_up_to, plan
from qimeng_attention.study.samples import SampleStore, read_samples, record

from .conftest import MakeSample


def test_what_is_recorded_is_read_again(tmp_path: Path, make: MakeSample) -> None:
    store = SampleStore(tmp_path / "deep" / "samples.jsonl")
    samples = [make("a"), make("b", ("parses", "judged", None)), make("c", sample=3, transcript="t", judged_on="cpu")]

    for sample in samples:
        store.record(sample)

    assert store.samples() == samples
    assert len((tmp_path / "deep" / "samples.jsonl").read_text().splitlines()) == 3


def test_a_plan_goes_on_where_it_stopped(tmp_path: Path, make: MakeSample) -> None:
    store = SampleStore(tmp_path / "s.jsonl")
    planned = plan({"a": 0, "b": 0}, ("two-stage", "vanilla"), "m", 2)
    assert len(planned) == len(set(planned)) == 8
    assert store.missing(planned) == planned
    assert {key[0] for key in planned[:2]} == {"a", "b"}  # every request has a first sample before one has a second

    store.record(make("a"))
    store.record(make("b", method="vanilla", sample=1))

    missing = store.missing(planned)
    assert len(missing) == 6
    assert ("a", "two-stage", "m", 1, 0) not in missing
    assert [key for key in planned if key in missing] == missing


def test_a_sample_is_recorded_once(tmp_path: Path, make: MakeSample) -> None:
    record(tmp_path / "s.jsonl", make())

    with pytest.raises(SpecError, match="sample 0 of one, two-stage, m, round 1 is recorded already"):
        record(tmp_path / "s.jsonl", make(refused=("judged",)))
    assert SampleStore(tmp_path / "s.jsonl").samples() == [make()]


@given(cut=st.integers(1, 400))
def test_a_line_cut_off_costs_its_sample_only(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "s.jsonl"
    samples = [_plain(n) for n in range(3)]
    for sample in samples[:2]:
        record(path, sample)
    whole = path.read_bytes()
    path.write_bytes(whole[: max(0, len(whole) - cut)])

    left = SampleStore(path).samples()
    assert left == samples[: len(left)]
    record(path, samples[2])

    assert SampleStore(path).samples() == [*left, samples[2]]


def _plain(number: int) -> Sample:
    attempt = Attempt(outcomes=outcomes_up_to(None))
    return Sample(request="r", stratum="known", method="two-stage", model="m", sample=number, attempts=[attempt])


def test_a_broken_line_in_the_middle_is_an_error_with_its_place(tmp_path: Path, make: MakeSample) -> None:
    path = tmp_path / "s.jsonl"
    record(path, make("a"))
    path.write_text('{"request": "x"}\n' + path.read_text())

    with pytest.raises(SpecError, match=r"s\.jsonl:1: "):
        SampleStore(path).samples()


def test_threads_may_add_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    threads = [threading.Thread(target=record, args=(path, _plain(n))) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert sorted(s.sample for s in SampleStore(path).samples()) == list(range(24))


def test_several_files_are_one_study_and_share_no_sample(tmp_path: Path, make: MakeSample) -> None:
    one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
    record(one, make("a"))
    record(two, make("b"))

    assert [s.request for s in read_samples([one, two])] == ["a", "b"]
    record(two, make("a"))
    with pytest.raises(SpecError, match="in another file too"):
        read_samples([one, two])
    with pytest.raises(SpecError, match="holds no samples"):
        read_samples([tmp_path / "none.jsonl"])


# ------------------------------------------------------------------ what a sample may say


def test_no_gate_has_an_outcome_behind_one_that_refused() -> None:
    for gate in GATES:
        outcomes = outcomes_up_to(gate)
        assert Attempt(outcomes=outcomes).refused_by == gate
        for behind in GATES[GATES.index(gate) + 1 :]:
            with pytest.raises(ValidationError, match="behind a gate that refused"):
                Attempt(outcomes={**outcomes, behind: "passed"})


def test_a_missing_answer_passes_nothing() -> None:
    with pytest.raises(ValidationError, match="no answer came"):
        Attempt(outcomes=outcomes_up_to(None), fault="truncated")


def test_nothing_follows_an_accepted_attempt_and_repairs_are_three_at_most(make: MakeSample) -> None:
    with pytest.raises(ValidationError, match="follows one that was accepted"):
        make(refused=(None, None))
    with pytest.raises(ValidationError, match="attempts"):
        make(refused=("parses",) * 5)


def test_an_unknown_cost_stays_unknown(make: MakeSample) -> None:
    sample = make(refused=("judged", None))

    assert sample.total("input_tokens") == 200
    assert sample.total("usd") is None
    assert sample.minutes == 1
