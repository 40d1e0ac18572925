"""Every `qimeng` line of the README and the quickstart does what it says, one after the other, in a folder of its own.

Kernels are not judged as they are generated, which other tests do; what needs a GPU says so.
"""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qimeng_attention.cli import app

ROOT = Path(__file__).parents[2]
NEED_A_GPU = ("bench",)
LONG = {"judge out/gqa_sm90"}  # judges the kernel where there is a GPU; its program, elsewhere, takes a minute


def lines(page: Path) -> list[tuple[list[str], str | None]]:
    """Give the words of each line, and the file that its output goes to."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            words = shlex.split(line, comments=True)
            if not words or Path(words[0]).name != "qimeng":
                continue
            words, to = (words[: words.index(">")], words[-1]) if ">" in words else (words, None)
            found.append((words[1:], to))
    return found


@pytest.mark.cuda
@pytest.mark.parametrize("page", ["README.md", "docs/quickstart.md"])
def test_every_line_works(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("QIMENG_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    given = lines(ROOT / page)
    assert given

    for words, to in given:
        if " ".join(words) in LONG:
            continue
        more = ["--no-judge"] if words[0] == "generate" else []
        result = CliRunner().invoke(app, [*words, *more])
        if words[0] in NEED_A_GPU and result.exit_code == 3:
            assert "GPU" in result.output or "PyTorch" in result.output
            continue
        assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}\n{result.exception!r}"
        if to is not None:
            (tmp_path / to).write_text(result.stdout)
