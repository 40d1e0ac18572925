"""Results files: what is written is read again, a row a line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qimeng_attention.bench.results import Case, MatrixRow, Results

CASE = Case(B=1, Hq=2, Hk=1, Sq=3, Sk=4, Dqk=64, Dv=64, dtype="bf16", mask="full", target="H200")
ROW = MatrixRow(case=CASE, verdict_cpu="accepted", verdict_gpu="", spills=0, compile_s=1.5)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_a_results_file_is_read_as_it_was_written(tmp_path: Path, count: int) -> None:
    made = Results(
        name="some", commit="c", date="2026-01-01", device="d", driver="1", packages={"torch": "2"}, command="python x",
        rows=[ROW] * count, summary={"text": 'a "quote"\n', "more": {"n": 1}},
    )  # fmt: skip

    path = made.save(tmp_path)

    assert Results.load(path) == made
    text = path.read_text("utf-8")
    assert text.count('{"case"') == count == sum(line.lstrip().startswith('{"case"') for line in text.splitlines())
    assert json.loads(text)["summary"]["text"] == 'a "quote"\n'
