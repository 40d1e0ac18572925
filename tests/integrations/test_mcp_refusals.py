"""What the MCP server refuses: paths that leave its folder, references, hidden characters, arguments of no sense."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

from typer.testing import CliRunner

from integrations.mcp_client import PROGRAM, SPEC, Caller, connected
from qimeng_attention.cli import app
from qimeng_attention.errors import BuildError, DiagnosticError, EnvironmentMissing, QimengError, SpecError
from qimeng_attention.integrations.mcp import answers, hidden, skill, work, worker
from qimeng_attention.integrations.mcp.root import Root
from qimeng_attention.judge import rule

ESCAPE = "\x1b[2J\x1b]0;owned\x07"
TURNED = "\u202e"  # right-to-left override


# ------------------------------------------------------------------ paths and references


@pytest.mark.parametrize("path", ["..", "../other", "/etc", "a/../../other", ".", "link/x", "a\0b", "x" * 300 + "/.."])
def test_a_path_that_leaves_the_folder_is_refused_by_name(path: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "link").symlink_to(tmp_path)

    async def ask() -> None:
        async with connected(root, allow_references=True) as call:
            for tool, given in (
                ("start_generate", {"spec": SPEC, "target": "A100", "out": path}),
                ("show", {"bundle": path}),
                ("start_judge", {"bundle": path}),
                ("start_bench", {"bundle": path}),
                ("start_judge", {"program": PROGRAM, "reference": f"{path}:attention"}),
            ):
                refused = await call(tool, **given)
                assert refused["error"]["code"] == "Q100"
                assert refused["error"]["details"]["field"] in ("out", "bundle", "reference")
            assert (await call("jobs"))["jobs"] == []

    anyio.run(ask)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["root"]


def test_a_reference_is_run_only_where_the_user_said_so(tmp_path: Path) -> None:
    (tmp_path / "ref.py").write_text("open(__file__ + '.ran', 'w')\ndef attention(Q, K, V, scale): return Q\n")

    async def ask() -> None:
        async with connected(tmp_path) as call:
            for tool in ("start_judge", "start_generate"):
                refused = await call(tool, program=PROGRAM, spec=SPEC, reference="ref.py:attention")
                assert refused["error"]["code"] == "Q100"
                assert "--allow-references" in refused["error"]["hint"]

    anyio.run(ask)
    assert not (tmp_path / "ref.py.ran").exists()


def test_a_users_reference_is_judged_against_in_its_own_process(tmp_path: Path) -> None:
    (tmp_path / "ref.py").write_text(
        "import numpy as np\n"
        "def attention(Q, K, V, scale):\n"
        "    K, V = (np.repeat(x, Q.shape[2] // K.shape[2], axis=2) for x in (K, V))\n"
        "    s = scale * np.einsum('bqhd,bkhd->bhqk', Q, K)\n"
        "    q, k = np.arange(Q.shape[1])[:, None], np.arange(K.shape[1])\n"
        "    s = np.where(k <= q + K.shape[1] - Q.shape[1], s, -np.inf)\n"
        "    p = np.exp(s - np.maximum(s.max(axis=-1, keepdims=True), -1e30))\n"
        "    t = p.sum(axis=-1, keepdims=True)\n"
        "    return np.einsum('bhqk,bkhd->bqhd', np.divide(p, t, out=np.zeros_like(p), where=t > 0), V)\n"
    )

    async def ask() -> dict[str, Any]:
        async with connected(tmp_path, allow_references=True) as call:
            return await call.ended(await call("start_judge", program=PROGRAM, spec=SPEC, reference="ref.py:attention"))

    found = anyio.run(ask)

    assert found["result"]["verdict"] == "accepted"
    assert found["result"]["reference"]["name"] == "attention"


def test_modules_of_ours_are_not_taken_from_the_folder(tmp_path: Path) -> None:
    for name in ("json.py", "numpy.py", "qimeng_attention.py"):
        (tmp_path / name).write_text("raise SystemExit('taken from the folder')\n")

    async def ask() -> None:
        async with connected(tmp_path) as call:
            assert (await call("check", program=PROGRAM))["ok"]

    anyio.run(ask)


# ------------------------------------------------------------------ hostile text


@pytest.mark.parametrize("text", [ESCAPE, TURNED, "\x9b31m", "\u2028"])
def test_text_with_hidden_characters_is_refused_with_its_place(text: str, tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path) as call:
            spec = {**SPEC, "name": f"x{text}"}
            for tool, given in (
                ("check", {"program": f"# first\n# x{text}\n{PROGRAM}"}),
                ("understand", {"spec": spec}),
                ("understand", {"spec": {**SPEC, f"mask{text}": "full"}}),
                ("statements", {"name": f"Copy{text}"}),
                ("poll", {"job": text}),
                ("start_generate", {"spec": SPEC, "out": f"b{text}"}),
            ):
                refused = await call(tool, **given)
                assert refused["error"]["code"] == "Q100"
                assert "not shown" in refused["error"]["message"]
                assert text[0] not in str(refused)
            placed = await call("check", program=f"# first\n# x{text}\n{PROGRAM}")
            assert (placed["error"]["details"]["line"], placed["error"]["details"]["column"]) == (2, 4)

    anyio.run(ask)


def test_what_goes_out_has_hidden_characters_written_out() -> None:
    shown = answers.success({f"a{ESCAPE}": [f"x{TURNED}", {"b": float("inf")}], "kept": "α\n\tβ"})

    assert shown == {
        "ok": True,
        "a\\x1b[2J\\x1b]0;owned\\x07": ["x\\u202e", {"b": "Infinity"}],
        "kept": "α\n\tβ",
    }


def test_a_bundle_with_hostile_words_is_shown_with_them_made_visible(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "manifest.json").write_text('{"format": "' + "\\u001b[2J" + '"}')

    async def ask() -> None:
        async with connected(tmp_path) as call:
            assert (await call("show", bundle="b"))["error"]["code"] == "Q600"

    anyio.run(ask)


# ------------------------------------------------------------------ arguments of no sense

NONSENSE: tuple[Any, ...] = (
    None, True, -1, 10**30, 1.5, float("nan"), "", "x", "9" * 400, "{", "[[[[", [], [1], {}, {"x": {"y": []}},
    {"Hq": -3}, {"B": 10**18}, "Kernel", "for " * 5000, "(" * 3000, "Ω", "../..", "A100", "auto", "sm_12",
)  # fmt: skip
NEEDED = {"program": PROGRAM, "spec": SPEC, "sizes": {"B": 1}, "bundle": "none", "job": "none-1"}


@pytest.mark.parametrize(
    "tool",
    ["statements", "targets", "understand", "show", "check", "interpret", "schedule", "translate", "start_build",
     "start_judge", "start_generate", "start_bench", "poll", "cancel", "jobs"],
)  # fmt: skip
def test_no_argument_of_no_sense_leaks_a_traceback(tool: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIMENG_CACHE_DIR", str(tmp_path / "cache"))

    async def ask() -> None:
        async with connected(tmp_path) as call:
            schema = {t.name: t.input_schema for t in (await call.client.list_tools()).tools}[tool]
            assert (await call(tool, nonsense=1))["error"]["details"]["field"] == "nonsense"
            needed = {name: NEEDED[name] for name in schema.get("required", ())}
            for name in schema["properties"]:
                for value in NONSENSE:
                    await _tried(call, tool, {**needed, name: value})

    anyio.run(ask)


async def _tried(call: Caller, tool: str, given: dict[str, Any]) -> None:
    answer = await call(tool, **given)
    if answer["ok"] and answer.get("state") == "running":
        await call("cancel", job=answer["job"])
    elif not answer["ok"]:
        assert answer["error"]["code"] != "Q000", (given, answer)
        assert answer["error"]["hint"], (given, answer)


GIVEN: dict[str, dict[str, Any]] = {
    "build": {"program": PROGRAM, "target": None, "arch": None},
    "judge": {"program": PROGRAM, "bundle": "", "spec": SPEC, "reference": None, "framework": "auto", "seed": 0},
    "generate": {"spec": SPEC, "program": None, "target": "A100", "arch": None, "until": "code", "out": None,
                 "judge": True, "force": False, "reference": None, "framework": "auto"},
}  # fmt: skip


@pytest.mark.parametrize(
    ("tool", "name"),
    [("build", "program"), ("build", "target"), ("build", "arch"), ("judge", "program"), ("judge", "spec"),
     ("judge", "reference"), ("generate", "spec"), ("generate", "program"), ("generate", "target"),
     ("generate", "arch"), ("generate", "until"), ("generate", "reference"), ("generate", "framework")],
)  # fmt: skip
def test_a_job_on_arguments_of_no_sense_fails_with_a_typed_error(tool: str, name: str) -> None:
    fits = dict if name == "spec" else str  # others do not pass the tool's schema
    for value in [x for x in NONSENSE if isinstance(x, fits) and x not in ({}, "", "A100", "auto")]:
        with pytest.raises(QimengError):
            work.do(tool, {**GIVEN[tool], name: value, **({"reference": "x"} if name == "framework" else {})}, _silent)


def _silent(done: int, total: int, name: str) -> None:
    """Say nothing of how far it is."""


def test_a_tool_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path) as call:
            assert "check" in (await call("chek"))["error"]["hint"]

    anyio.run(ask)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("x"), "Q000"),
        (MemoryError(), "Q700"),
        (FileNotFoundError("x"), "Q700"),
        (SpecError("x", hint="y", field="z"), "Q100"),
        (DiagnosticError([]), "Q200"),
        (BuildError("x", hint="y", log="l" * 100_000), "Q300"),
    ],
)
def test_every_error_has_the_same_keys(error: Exception, code: str) -> None:
    found = answers.explained(error)

    assert set(found) == {"code", "message", "hint", "diagnostics", "details"}
    assert (found["code"], bool(found["hint"])) == (code, True)
    assert len(str(found)) < 10_000


def test_a_reason_keeps_its_place_and_loses_the_value() -> None:
    plain = rule.without_values("Out[0, 5] is 0.36, expected 0.07 within 0.009 (1 of 4352 elements are beyond)")
    never = rule.without_values("Out[1, 2] is nan (never written, or not a number), expected 0.5 (3 of 9 elements)")

    assert plain == "Out[0, 5] is 0.36, not what it should be within 0.009 (1 of 4352 elements are beyond)"
    assert never == "Out[1, 2] is nan (never written, or not a number), not what it should be (3 of 9 elements)"
    assert rule.without_values("Out has the shape (1, 2), expected (2, 1)").endswith("expected (2, 1)")


def test_a_long_text_is_refused() -> None:
    with pytest.raises(SpecError, match="characters"):
        hidden.refuse_hidden("x" * (hidden.MOST_CHARACTERS + 1), "program")


def test_line_ends_of_any_system_are_taken_and_a_lone_return_is_not() -> None:
    hidden.refuse_hidden("a\r\nb\n", "program")

    with pytest.raises(SpecError, match=r"x0d, in line 2, column 2"):
        hidden.refuse_hidden("a\r\nb\rc", "program")
    assert hidden.visible("a\r\nb\rc") == "a\nb\\x0dc"


def test_half_a_character_is_refused() -> None:
    with pytest.raises(SpecError, match=r"ud800, in line 2, column 2"):
        hidden.refuse_hidden(["fine", "a\nb\ud800"], "program")


@pytest.mark.parametrize("size", [10**4, 10**9, 10**30])
def test_sizes_that_no_memory_holds_are_refused(size: int, tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path) as call:
            sizes = dict.fromkeys(("B", "Sq", "Sk", "Hq", "Hk"), size)
            refused = await call("interpret", program=PROGRAM, sizes=sizes)
            assert refused["error"]["code"] == "Q100"
            assert refused["error"]["details"]["field"] == "sizes"

    anyio.run(ask)


@pytest.mark.skipif(sys.platform != "linux", reason="bounds data as Linux counts it")
def test_a_quick_stage_may_allocate_so_much_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "MEMORY_BYTES", 4 << 30)

    with pytest.raises(MemoryError), worker._limited():
        np.ones(1 << 30)

    np.ones(1 << 10)


# ------------------------------------------------------------------ the command


def test_the_command_prints_the_skill() -> None:
    result = CliRunner().invoke(app, ["mcp", "--skill"])

    assert (result.exit_code, result.stdout) == (0, skill())
    assert "What not to do" in result.stdout


def test_the_command_names_a_folder_that_is_not_there(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["mcp", "--root", str(tmp_path / "none")])

    assert result.exit_code == 3
    assert "--root" in result.output
    with pytest.raises(EnvironmentMissing):
        Root.of(__file__)


def test_without_the_sdk_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "qimeng_attention.integrations.mcp.server", None)

    result = CliRunner().invoke(app, ["mcp"])

    assert result.exit_code == 3
    assert "pip install 'qimeng-attention[mcp]'" in result.output
