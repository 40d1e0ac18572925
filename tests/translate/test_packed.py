"""Places in memory behind `at`: pointers and bounds for threads, two dimensions of one for the copy engine."""

from __future__ import annotations

import pytest

from qimeng_attention import targets
from qimeng_attention.author.planner import plan
from qimeng_attention.errors import DiagnosticError
from qimeng_attention.schedule import schedule
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.tl.parser import parse
from qimeng_attention.translate import Translation, translate

SPEC = AttentionSpec.make(Hq=4, Hk=2, Dqk=64, mask="causal", varlen=True, dtype="fp16")


def code(target: str) -> str:
    return plan(SPEC, targets.get(target)).code


def translated(text: str) -> Translation:
    return translate(schedule(parse(text)))[0]


@pytest.mark.parametrize("target", ["A100", "T4"])
def test_rows_begin_at_their_place_and_end_with_the_sequence(target: str) -> None:
    source = translated(code(target)).source

    assert "gQ_at + int64_t(at_q + block * BM) * gQ_stride_0" in source
    assert "tl::min(Tq - (at_q + block * BM), Sq - block * BM)" in source
    assert "gK_at + int64_t(at_k + " in source
    assert "tl::find(0, B, [&](int batch) {" in source


def test_the_copy_engine_is_told_how_many_rows_there_are() -> None:
    made = translated(code("H200"))

    assert "int const rows = tl::clamp(tl::min(Sk - i * BN, Tk - (at_k + i * BN)), 0, 128);" in made.source
    assert "head_k, 128 - rows, at_k + i * BN + rows);" in made.source
    assert [(m["tensor"], m.get("ragged"), m["dimension"]) for m in made.facts["maps"]] == [
        (name, True, 0) for name in ("Q", "K", "V", "Out")
    ]
    assert made.facts["counter"]


def test_one_thread_searches_alone_and_a_warp_together() -> None:
    producer, consumer = translated(code("H200")).source.split("role consumer")

    assert "tl::find_alone(" in producer
    assert "tl::find_alone(" not in consumer
    assert "tl::find(" in consumer


def test_the_next_tile_is_asked_for_before_the_last_keys_arrive() -> None:
    assert "if (t_taken < 0 && i >= last + 1 - 3) t_taken = tile_queue.take();" in translated(code("H200")).source


@pytest.mark.parametrize(
    ("target", "old", "new", "words"),
    [
        ("H200", "Let at_k = clamp(StartK[batch], 0, Tk)", "Let at_k = StartK[batch]", "begin within the tensor"),
        ("H200", ": Sk at at_k + i * BN, head_k] from global to shared\n    Reshape",
         "at at_k + i * BN, head_k] from global to shared\n    Reshape", "end where the coordinate says"),
        ("H200", "at at_k + i * BN", "at at_k + k + 0 * StartK[k]", "side by side"),
    ],
)  # fmt: skip
def test_places_that_have_no_lowering_are_refused_by_name(target: str, old: str, new: str, words: str) -> None:
    text = code(target)
    assert old in text

    with pytest.raises(DiagnosticError, match="TL701") as refusal:
        translated(text.replace(old, new))

    assert words in str(refusal.value)


def test_dense_programs_have_no_ragged_maps() -> None:
    dense = plan(SPEC.model_copy(update={"varlen": False}), targets.get("H200")).code

    made = translated(dense)

    assert not any("ragged" in m for m in made.facts["maps"])
    assert "tl::find" not in made.source
