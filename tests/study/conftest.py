"""Samples as a trial would write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from qimeng_attention.study.record import GATES_OF, Attempt, Sample, outcomes_up_to

MakeSample = Callable[..., Sample]


@pytest.fixture
def make() -> MakeSample:
    """Make a sample from the gates that refused its attempts; None is an attempt that the judge accepted."""

    def made(request: str = "one", refused: tuple[Any, ...] = (None,), *, codes: str = "TL201", **more: Any) -> Sample:
        method = more.get("method", "two-stage")
        attempts = [
            Attempt(outcomes=outcomes_up_to(gate, GATES_OF[method]), codes=[codes] if gate else [], seconds=30,
                    input_tokens=100, output_tokens=10)
            for gate in refused
        ]  # fmt: skip
        given = {"stratum": "unseen", "method": method, "model": "m", "sample": 0, **more}
        return Sample(request=request, attempts=attempts, **given)

    return made
