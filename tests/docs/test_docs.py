"""What docs/ and README.md say is what the tables, the command line and the results say."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from qimeng_attention.schedule import REWRITINGS
from qimeng_attention.tl.checker import check_text
from qimeng_attention.tl.functions import FUNCTIONS
from qimeng_attention.tl.parser import parse
from qimeng_attention.tl.printer import print_program
from qimeng_attention.tl.statements import TABLE

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
WRITTEN = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "SECURITY.md",
    *sorted(DOCS.rglob("*.md")),
]
PAGES = [path for path in WRITTEN if path.is_file()]


def _module(path):
    spec = importlib.util.spec_from_file_location(f"tool_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


docs = _module(ROOT / "tools" / "docs.py")
plot = _module(ROOT / "benchmarks" / "plot.py")
tables = _module(ROOT / "benchmarks" / "tables.py")
plot_hopper = _module(ROOT / "benchmarks" / "plot_hopper.py")


def _name(path):
    return str(path.relative_to(ROOT))


def blocks(text, language):
    """The fenced blocks of a language, without the indentation of a list they stand in."""
    found = re.findall(rf"^( *)```{re.escape(language)}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", body, flags=re.MULTILINE) for indent, body in found]


# ------------------------------------------------------------------ generated parts


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=_name)
def test_generated_parts_are_fresh(page):
    text = page.read_text("utf-8")

    assert docs.rendered(text) == text, "run `make docs`"


def test_the_readmes_table_is_drawn_from_the_results():
    text = (ROOT / "README.md").read_text("utf-8")
    results = plot.load(ROOT / "benchmarks" / "results" / f"{plot.NAME}.json")

    assert plot.with_table(text, results) == text, "run `make docs`"
    for row in results.rows:
        ours, peer = plot.tflops(row, row.ours_ms), plot.tflops(row, row.peers_ms[plot.PEER])
        assert f"{ours:.0f} / {peer:.0f} ({row.ratio:.2f})" in text


def test_the_page_of_measurements_is_drawn_from_the_results():
    text = (DOCS / "measured.md").read_text("utf-8")

    assert tables.with_tables(text) == text, "run `make docs`"


def test_the_page_of_flexattention_is_drawn_from_the_results():
    text = (DOCS / "flex.md").read_text("utf-8")

    assert tables.with_tables(text, tables.FLEX) == text, "run `make docs`"


def test_the_page_of_the_study_is_drawn_from_the_results():
    text = (DOCS / "study.md").read_text("utf-8")

    assert tables.with_tables(text, tables.STUDY) == text, "run `make docs`"


def test_the_table_of_callables_shows_verdicts_times_and_refusals(tmp_path, monkeypatch):
    case = {"B": 2, "Hq": 16, "Hk": 16, "Sq": 4096, "Sk": 4096, "Dqk": 128, "Dv": 128, "dtype": "bf16"}
    times = {"ours_ms": 0.5, "peers_ms": {"FlexAttention (Triton)": 1.0}, "ours_eager_ms": 0.5, "ratio": 2.0}
    errors = {"peers_eager_ms": {}, "error_before": 0.0, "error_after": 0.0, "bound": ""}
    row = {"case": {**case, "mask": "full", "mods": "full_bias", "target": "H200"}, **times, **errors}
    summary = {
        "mods": 3,
        "accepted": 2,
        "rows": 1,
        "geomean": 2.0,
        "tensors": {"full_bias": {"bias": "(Hq, Sq, Sk) bf16"}, "causal": {}},
        "verdicts_cpu": {"full_bias": {"verdict": "accepted"}},
        "verdicts_gpu": {"full_bias": {"verdict": "rejected"}},
        "refused": {"dropout": "score_mod draws random numbers (rand)"},
        "left_out": {"full_bias": {"FlexAttention (FA4)": "not installed"}},
    }
    fields = dict.fromkeys(("name", "commit", "date", "device", "driver", "command"), "x")
    found = tables.Results(**fields, packages={}, rows=[row], summary=summary)
    found.model_copy(update={"name": "flex_mods_h200"}).save(tmp_path)
    monkeypatch.setattr(tables, "RESULTS", tmp_path)

    text = tables.with_tables("<!-- begin: flex_mods -->\n<!-- end: flex_mods -->\n", tables.FLEX)

    assert "| full bias | bias (Hq, Sq, Sk) bf16 | accepted | rejected | 0.500 | 1.000 | 2.000 |" in text
    assert "| causal |  |  |  |  |  |  |" in text
    assert "- dropout: score_mod draws random numbers (rand)." in text
    assert "- FlexAttention (FA4): not installed (full bias)." in text


def test_the_readmes_hopper_table_is_drawn_from_the_results():
    text = (ROOT / "README.md").read_text("utf-8")
    results = plot.load(ROOT / "benchmarks" / "results" / f"{plot_hopper.NAME}.json")

    assert plot_hopper.with_table(text, results) == text, "run `make docs`"
    for row in results.rows:
        best = min(row.peers_ms.values())
        assert abs(row.ratio - best / row.ours_ms) < 1e-9
        assert f"| {row.ratio:.3f} |" in text


@pytest.mark.parametrize("name", [plot.NAME, plot_hopper.NAME])
def test_the_figures_the_readme_shows_are_there(name):
    assert (DOCS / "figures" / f"{name}.svg").is_file()


# ------------------------------------------------------------------ a page for everything


@pytest.mark.parametrize("name", [rule.name for rule in TABLE.values()])
def test_a_statement_has_a_page(name):
    page = DOCS / "tl" / f"{name.lower()}.md"

    assert page.is_file()
    assert f"<!-- generated: statement {name} -->" in page.read_text("utf-8")


@pytest.mark.parametrize("name", REWRITINGS)
def test_a_rewriting_has_a_page(name):
    page = DOCS / "schedule" / f"{name}.md"

    assert page.is_file()
    assert f"<!-- generated: rewriting {name} -->" in page.read_text("utf-8")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_has_a_heading(name):
    assert f"### {name}\n" in (DOCS / "tl" / "functions.md").read_text("utf-8")


def test_every_code_of_the_source_is_explained_and_no_other():
    text = (DOCS / "tl" / "diagnostics.md").read_text("utf-8")
    explained = re.findall(r"^## (TL\d{3})$", text, re.MULTILINE)

    assert explained == docs.codes()
    for code in explained:
        assert f"<!-- generated: diagnostic {code} -->" in text


# ------------------------------------------------------------------ links


def anchors(page):
    """The anchors of a page's headings, as they are made for Markdown."""
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", h.lower()).strip().replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_links_inside_the_repository_resolve(page):
    text = re.sub(r"```.*?```", "", page.read_text("utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_a_sentence_has_a_line_of_its_own(page):
    text = re.sub(r"^ *```.*?^ *```", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"<!-- generated.*?<!-- end of generated -->", "", text, flags=re.DOTALL)
    prose = [line for line in text.splitlines() if re.match(r"[A-Z]", line)]
    for line in prose:
        bare = re.sub(r"`[^`]*`|\([^)]*\)", "", line)
        assert not re.search(r"[a-z]\. [A-Z][a-z]", bare), line


# ------------------------------------------------------------------ TL


def complete_programs():
    found = []
    for page in PAGES:
        for number, text in enumerate(blocks(page.read_text("utf-8"), "tl program")):
            found.append(pytest.param(text, id=f"{_name(page)}-{number}"))
    return found


@pytest.mark.parametrize("text", complete_programs())
def test_a_complete_program_parses_prints_and_checks(text):
    program = parse(text)

    assert parse(print_program(program)) == program
    assert check_text(text)


def test_the_sample_program_checks_without_a_warning():
    (checked,) = check_text(docs.sample())

    assert checked.warnings == ()


def test_the_parts_of_the_operators_page_make_the_example():
    parts = blocks((DOCS / "operators.md").read_text("utf-8"), "tl")
    program = parse("\n".join(parts))
    example = parse((ROOT / "examples" / "squared_relu.tl").read_text("utf-8"))

    def lines(p):
        return [re.sub(r" *#.*", "", x) for x in print_program(p).splitlines() if not x.startswith("#")]

    assert [x for x in lines(program) if x] == [x for x in lines(example) if x]


# ------------------------------------------------------------------ commands


def shell_lines():
    found = []
    for page in PAGES:
        for block in blocks(page.read_text("utf-8"), "sh"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0] in (".venv/bin/qimeng", "qimeng"):
                    found.append(pytest.param(words[1:], id=f"{_name(page)}: {' '.join(words[1:4])}"))
    return found


@pytest.mark.parametrize("words", shell_lines())
def test_a_shell_example_names_a_command_and_options_that_exist(words):
    commands = docs.typer_commands()
    name = " ".join(words[:2]) if " ".join(words[:2]) in commands else words[0]
    assert name in commands
    known = {o for p in commands[name].params for o in [*p.opts, *p.secondary_opts]}
    for word in words[1:]:
        if word.startswith("-") and not word.lstrip("-")[:1].isdigit():
            assert word.partition("=")[0] in known, word


def test_the_targets_of_make_that_documents_name_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", makefile, re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"(?:^|`)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)
    }

    assert {"setup", "demo", "test"} <= targets
    assert named <= targets


def test_examples_that_documents_name_are_there():
    for page in PAGES:
        for name in re.findall(r"\bexamples/[\w.]+\w", page.read_text("utf-8")):
            assert (ROOT / name).exists(), f"{_name(page)}: {name}"
