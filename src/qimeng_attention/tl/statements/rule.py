"""What the table of statements holds of each: its form, its legality and its meaning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from qimeng_attention.tl.machine import RunResult, Strand
from qimeng_attention.tl.scope import Scope


@dataclass(frozen=True)
class Rule:
    """One statement of TL. Its lowerings lie under the same name in each generation's folder of translate/."""

    name: str
    keyword: str  # the word a line begins with
    example: str
    doc: str  # one or two sentences for the language reference and the prompts
    check: Callable[[Any, Scope], None]
    run: Callable[[Any, Strand], RunResult]
    level: str = "code"  # the first level at which it may stand: "sketch", "code" or "scheduled"
