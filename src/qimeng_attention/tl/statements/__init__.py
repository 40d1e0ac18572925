"""The one table of statements: operands, legality, meaning, documentation and example of each."""

from __future__ import annotations

from qimeng_attention.tl.statements import (
    allocate,
    choose,
    compute,
    control,
    copy,
    declare,
    find,
    gemm,
    mask,
    reshape,
    sync,
)
from qimeng_attention.tl.statements.rule import Rule
from qimeng_attention.tl.syntax import Statement

TABLE: dict[type[Statement], Rule] = {}
for _module in (declare, find, choose, allocate, copy, gemm, mask, compute, reshape, control, sync):
    TABLE |= _module.RULES

EXAMPLES: dict[str, str] = {}
for _rule in TABLE.values():
    EXAMPLES.setdefault(_rule.keyword, _rule.example)

__all__ = ["EXAMPLES", "TABLE", "Rule"]
