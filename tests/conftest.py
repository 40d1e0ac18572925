"""Options and fixtures that all tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# Examples are the same in every run, and a busy machine is no failure.
settings.register_profile("project", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")

sys.path.insert(0, str(Path(__file__).parent))  # tests may import helpers that lie in folders beside them


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite the golden files of tests/**/golden")


@pytest.fixture
def golden(request: pytest.FixtureRequest):
    """Compare a text with the golden file of a name, or rewrite it."""

    def compare(name: str, text: str) -> None:
        path = Path(request.node.fspath).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, "utf-8")
        assert path.is_file(), f"no golden file {path}: run pytest --update-golden and read what it wrote"

        assert text == path.read_text("utf-8")

    return compare
