"""Pages of a bundle: whole, safe whatever the bundle says, and the HTML loads nothing."""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from qimeng_attention.cli import app
from qimeng_attention.report import Page, show_page, to_html

VOID = {"meta", "br", "rect", "hr", "img", "link", "input"}
HOSTILE = "</code></script><script>alert(1)</script><img src=x onerror=alert(1)> {{ 7*7 }} \x1b[2J \u202e & ' \""


class Reader(HTMLParser):
    """Reads a page: tags that do not close, text by the id of the element around it, and what would be loaded."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, str | None]] = []
        self.texts: dict[str, str] = {}
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.handlers: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.add(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "href", "data", "action", "srcset")]
        self.handlers += [name for name, _ in attrs if name.startswith("on")]
        if (name := given.get("id")) is not None:
            self.ids.append(name)
        if tag not in VOID:
            self.open.append((tag, given.get("id")))

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open, f"</{tag}> closes nothing"
            assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        for _, name in self.open:
            if name:
                self.texts[name] = self.texts.get(name, "") + data


def terminal(page: Page, width: int = 140) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show_page(console, page)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_the_page_for_the_terminal(page: Callable[..., Page], golden: Any) -> None:
    golden("page.txt", terminal(page()))


def test_the_html_is_well_formed_and_holds_every_line_once(page: Callable[..., Page]) -> None:
    shown = page()

    read = Reader(to_html(shown))

    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    for number, line in enumerate(shown.tl, 1):
        assert read.texts[f"tl-{number}"] == f"{number}{line}"
    marks = sum("// tl:" in line for line in shown.cpp)
    assert sum(name.startswith("cpp-") for name in read.texts) == len(shown.cpp) - marks
    assert {"operator", "reasons", "resources", "verdict", "speed", "program"} <= set(read.ids)


def test_partners_stand_in_one_row(page: Callable[..., Page]) -> None:
    rows = to_html(page()).split('role="row"')

    (row,) = [row for row in rows if 'id="tl-9"' in row]
    assert "mask" in row
    assert 'id="cpp-12"' in row
    assert 'id="tl-8"' not in row


def test_the_html_loads_nothing(page: Callable[..., Page]) -> None:
    text = to_html(page())
    read = Reader(text)

    assert all(address.startswith("#") for address in read.loads)
    assert {address[1:] for address in read.loads} <= set(read.ids)
    assert not read.tags & {"script", "link", "img", "iframe", "object", "embed", "base", "form"}
    assert not re.search(r"url\(|@import|https?:|//[a-z]+\.[a-z]", re.sub(r"<code>.*?</code>", "", text))
    assert "default-src 'none'" in html.unescape(text)


def test_both_lights_have_colours(page: Callable[..., Page]) -> None:
    text = to_html(page())

    assert text.count("prefers-color-scheme: dark") >= 2
    assert 'content="light dark"' in text


def test_hostile_words_are_text(page: Callable[..., Page]) -> None:
    hostile = {
        "scheduled.tl": f"Kernel k\n# {HOSTILE}\n".encode(),
        "kernel.cu": f"// {HOSTILE}\n// tl:2 {HOSTILE}\nint x; // {HOSTILE}\n".encode(),
        "sketch.tl": HOSTILE.encode(),
        "code.tl": HOSTILE.encode(),
        "spec.json": json.dumps({"Hq": 8, "name": "k", "mask": HOSTILE}).encode(),
        "reasons.json": json.dumps({"reasons": [{"parameter": HOSTILE, "value": HOSTILE, "why": HOSTILE}]}).encode(),
        "verdict.json": json.dumps({"verdict": HOSTILE, "reason": HOSTILE, "checks": [{"case": HOSTILE}]}).encode(),
        "speed.json": json.dumps({HOSTILE: HOSTILE}).encode(),
        "report.json": json.dumps({"registers": HOSTILE, "counts": {HOSTILE: 1}, "warnings": [HOSTILE]}).encode(),
    }
    shown = page(hostile, target=HOSTILE, provenance={HOSTILE: HOSTILE})

    text = to_html(shown)
    read = Reader(text)
    assert read.open == []
    assert not read.tags & {"script", "img"}
    assert read.handlers == []
    assert "{{ 7*7 }}" in html.unescape(text)
    for drawn in (text, terminal(shown)):
        assert "\x1b" not in drawn
        assert "\u202e" not in drawn


@pytest.mark.parametrize("name", ["spec.json", "report.json", "reasons.json", "verdict.json", "speed.json"])
@pytest.mark.parametrize(
    "content",
    [b"null", b"[]", b"{", b"\xff", b"3", b'{"checks": 3, "reasons": [1], "occupancy": [], "counts": {"a": null}}',
     b'{"checks": [{"bound": "x", "worst_error": null}], "clauses": [[]], "notes": 5}', b'{"Hq": "many"}'],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_left_out(page: Callable[..., Page], name: str, content: bytes) -> None:
    shown = page({name: content})

    assert Reader(to_html(shown)).open == []
    assert "gqa for H200" in terminal(shown)


def test_without_a_verdict_or_a_speed_that_is_said(page: Callable[..., Page]) -> None:
    shown = page({"verdict.json": None, "speed.json": None})

    for text in (to_html(shown), terminal(shown)):
        assert "has not been judged" in text
        assert "qimeng bench" in text


def test_show_prints_the_page_and_writes_the_file(folder: Callable[..., Path], tmp_path: Path) -> None:
    bundle, out = str(folder()), tmp_path / "page.html"

    printed = CliRunner().invoke(app, ["show", bundle])
    brief = CliRunner().invoke(app, ["show", bundle, "--no-program"])
    written = CliRunner().invoke(app, ["show", bundle, "--html", str(out)])

    assert (printed.exit_code, brief.exit_code, written.exit_code) == (0, 0, 0)
    assert "tl::gemm(rS, sQ, sK);" in printed.output
    assert "tl::gemm" not in brief.output
    assert Reader(out.read_text("utf-8")).texts["tl-2"] == "2Kernel gqa for h200"


def test_generate_begins_with_what_it_understood() -> None:
    asked = ["generate", "--Hq", "4", "--Dqk", "64", "--mask", "window:3", "--target", "A100", "--emit", "sketch"]

    printed = CliRunner().invoke(app, asked)
    quiet = CliRunner().invoke(app, [*asked, "--quiet"])

    assert printed.exit_code == quiet.exit_code == 0
    assert printed.output.index("a query sees itself, the 3 keys before it") < printed.output.index("── sketch")
    assert "weights P, float64" in printed.output
    assert "██" in printed.output
    assert "weights P" not in quiet.output


@pytest.mark.parametrize("columns", [80, 120])
def test_picture_and_example_are_whole_in_a_narrow_terminal(page: Callable[..., Page], columns: int) -> None:
    shown = terminal(page(), width=columns)

    assert "…" not in shown
    assert re.search(r"^ +0 (██|▒▒|··){16} *$", shown, re.MULTILINE)
    assert max(map(len, shown.splitlines())) <= columns


def test_show_writes_the_file_beside_json(folder: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "page.html"

    shown = CliRunner().invoke(app, ["show", str(folder()), "--html", str(out), "--json"])

    assert json.loads(shown.stdout)["manifest"]["kernel"] == "gqa"
    assert out.is_file()


def test_without_a_measured_speed_there_is_a_prediction_that_says_so(page: Callable[..., Page]) -> None:
    shown = page({"speed.json": None})

    assert shown.predicted
    text = terminal(shown).partition("speed ──")[2]
    assert text.index("not measured") < text.index("prediction")


def test_of_a_models_program_it_says_what_the_model_did_not_write(page: Callable[..., Page]) -> None:
    reasons = {
        "author": "a model",
        "repairs": 1,
        "not the author's": ["Schedule: warps 4 along q"],
        "reasons": [],
        "failed before": [{"stage": "code", "gate": "check", "codes": ["TL202"]}],
    }
    shown = page({"reasons.json": json.dumps(reasons).encode()})

    for text in (html.unescape(to_html(shown)), terminal(shown)):
        assert "Schedule: warps 4 along q" in text
        assert "code by check (TL202)" in text
