"""What is said of a description: the formula, the assumptions, the picture, the example."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from qimeng_attention.errors import SpecError
from qimeng_attention.judge import Call, Operator, truth
from qimeng_attention.report import show_understood, understand
from qimeng_attention.report.mask_picture import COLUMNS, ROWS
from qimeng_attention.report.understood import EXAMPLE_SK, EXAMPLE_SQ
from qimeng_attention.spec import AttentionSpec


def spec(**fields: Any) -> AttentionSpec:
    return AttentionSpec.make(**{"Hq": 8, "Hk": 2, "Dqk": 64, **fields})


def drawn(given: AttentionSpec, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_understood(console, understand(given))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_causal_is_drawn(golden: Any) -> None:
    golden("causal.txt", drawn(spec(mask="causal")))


def test_a_capped_window_is_drawn(golden: Any) -> None:
    golden("window.txt", drawn(spec(mask="window:1024,256", softcap=20.0, score="score + h", outputs=("O",))))


def test_sinks_are_drawn(golden: Any) -> None:
    golden("sinks.txt", drawn(spec(mask="window:127", weights="softmax+sink")))


def test_weights_of_one_score_are_drawn(golden: Any) -> None:
    golden("relu2.txt", drawn(spec(mask="causal", weights="relu2", score="score / Sk", dtype="fp16")))


def test_a_cache_in_pages_is_described(golden: Any) -> None:
    golden("paged.txt", drawn(spec(mask="causal", Sq=1, page_size=16)))


def test_a_narrow_terminal_loses_nothing_of_the_picture() -> None:
    assert drawn(spec(mask="causal"), width=80).count("█") == drawn(spec(mask="causal")).count("█")


@pytest.mark.parametrize("mask", ["full", "causal", "window:2", "window:2,1", "kv_idx % 3 == 0"])
def test_small_pictures_are_the_mask_itself(mask: str) -> None:
    given = spec(mask=mask)
    picture = understand(given).picture
    call = Call(1, ROWS, COLUMNS, 8, 2, 64, 64, 1.0)

    expected = Operator.of(given).visible(call, 0, 0, np.arange(ROWS), np.arange(COLUMNS))
    np.testing.assert_array_equal(np.array(picture.cells), expected.astype(float))
    assert picture.exact


@pytest.mark.parametrize("left", [16, 100, 4096, 1 << 20])
def test_a_window_of_any_size_looks_alike(left: int) -> None:
    picture = understand(spec(mask=f"window:{left}")).picture

    cells = np.array(picture.cells)
    assert cells.shape == (ROWS, COLUMNS)
    assert picture.keys_a_cell * COLUMNS == picture.seqlen_k
    assert 2 <= (cells == 1).sum(axis=1).max() <= 5
    assert cells[0, -1] == cells[-1, 0] == 0


def test_fixed_lengths_are_drawn_to_their_last_key() -> None:
    picture = understand(spec(mask="causal", Sq=1, Sk=1000)).picture

    assert (picture.seqlen_q, picture.seqlen_k) == (1, 1000)
    assert len(picture.cells) == 1
    assert set(picture.cells[0]) == {1.0}


def test_a_mask_of_heads_names_the_one_that_is_shown() -> None:
    assert "head 0" in understand(spec(mask="h < 4 or kv_idx <= q_idx")).picture.words()
    assert "head" not in understand(spec(mask="causal")).picture.words()


def test_the_example_is_the_references() -> None:
    given = spec(mask="window:1", softcap=5.0)
    weights = understand(given).weights
    rng = np.random.default_rng(0)
    q, k = (rng.standard_normal((n, 64)) for n in (EXAMPLE_SQ, EXAMPLE_SK))
    call = Call(1, EXAMPLE_SQ, EXAMPLE_SK, 1, 1, 64, EXAMPLE_SK, given.default_scale)

    found = truth(Operator.of(given), call, q[None, :, None], k[None, :, None], np.eye(EXAMPLE_SK)[None, :, None])

    np.testing.assert_allclose(weights.values, found.out[0, :, 0], atol=1e-15)
    np.testing.assert_allclose(weights.lse, found.lse[0, 0])
    np.testing.assert_allclose(weights.values.sum(axis=1), 1)
    assert (weights.values[~weights.visible] == 0).all()


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("causal", "key that stands at a query"),
        ("kv_idx <= q_idx", "nothing is aligned at the ends"),
        ("full", "nothing depends on them"),
    ],
)
def test_what_positions_mean_is_said(mask: str, words: str) -> None:
    assert words in dict(understand(spec(mask=mask)).assumptions)["positions"]


def test_a_window_says_that_its_bounds_are_inclusive() -> None:
    assert (
        "itself, the 3 keys before it and the 2 after it"
        in dict(understand(spec(mask="window:3,2")).assumptions)["seen keys"]
    )


@pytest.mark.parametrize("score", ["exp2(score * 4000)", "score / (q_idx - q_idx)", "ln(0 * score)"])
def test_an_example_that_overflows_is_shown(score: str) -> None:
    assert drawn(spec(score=score)).count("\n") > 20


def test_a_mask_that_cannot_be_read_is_a_spec_error() -> None:
    with pytest.raises(SpecError, match="unknown name"):
        understand(spec(mask="kv_idx <= qidx"))
