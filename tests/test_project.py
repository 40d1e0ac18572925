"""Habits of the project that no linter checks: short functions, short files, no variant's name below the author."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "qimeng_attention"
FILES = sorted(SOURCE.rglob("*.py"))
VARIANTS = re.compile(
    r"[\"'](mha|gqa|mqa|mla|nsa|causal|softcap|alibi|window|sigmoid_attention|OnlineSoftmax)[\"']", re.IGNORECASE
)
BELOW_THE_AUTHOR = ("tl", "schedule", "translate", "build")
MOST_LINES_OF_A_FUNCTION, MOST_LINES_OF_A_FILE = 60, 600


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_functions_and_files_are_short(path: Path) -> None:
    text = path.read_text("utf-8")

    assert len(text.splitlines()) <= MOST_LINES_OF_A_FILE
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MOST_LINES_OF_A_FUNCTION, node.name


@pytest.mark.parametrize("folder", BELOW_THE_AUTHOR)
def test_no_branch_on_a_variants_name_below_the_author(folder: str) -> None:
    found = []
    for path in sorted((SOURCE / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Compare) and VARIANTS.search(ast.unparse(node)):
                found.append(f"{path.name}:{node.lineno}: {ast.unparse(node)}")

    assert found == []
