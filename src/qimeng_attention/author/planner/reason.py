"""Why a parameter has its value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from qimeng_attention.errors import SpecError
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.targets import Target

SHOWN_ALTERNATIVES = 4


@dataclass(frozen=True)
class Reason:
    """Why a parameter has its value: one sentence, and the model's figures behind it (predictions)."""

    parameter: str
    value: str
    why: str
    figures: dict[str, float | str]


class Costed(Protocol):
    """What is told of a tiling that was not chosen."""

    @property
    def clocks_a_key(self) -> float: ...  # noqa: D102
    def describe(self) -> str: ...  # noqa: D102


def alternatives(choices: Sequence[Costed]) -> dict[str, float | str]:
    """Give the tilings behind the best one as figures."""
    return {f"alternative {n}": t.describe() for n, t in enumerate(choices[1 : SHOWN_ALTERNATIVES + 1], 1)}


def no_tile(spec: AttentionSpec, target: Target) -> SpecError:
    """Make the error for head dims that no tiling has room for."""
    return SpecError(
        f"no tile of head dims {spec.Dqk} and {spec.Dv} fits {target.name}",
        hint="take a smaller head dim",
        field="Dqk",
        value=spec.Dqk,
    )
