from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llm.scripted import request
from qimeng_attention.errors import EnvironmentMissing, SpecError
from qimeng_attention.llm import clients
from qimeng_attention.llm.clients import open_client
from qimeng_attention.llm.command import CommandClient
from qimeng_attention.llm.file import FileClient
from qimeng_attention.llm.replay import ReplayClient
from qimeng_attention.llm.transcript import Transcript, load


def test_a_name_says_which_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "SHIPPED", tmp_path)
    ask = open_client("command: my-model --say 'two words'")
    folder = open_client(f"file:{tmp_path}/a:b")

    assert isinstance(ask, CommandClient)
    assert ask.argv == ("my-model", "--say", "two words")
    assert isinstance(folder, FileClient)
    assert folder.folder == tmp_path / "a:b"
    assert isinstance(open_client("replay"), ReplayClient)
    assert isinstance(open_client(f"replay:{tmp_path}"), ReplayClient)


@pytest.mark.parametrize("name", ["gpt-4o", "opnai:x", "", ":", "planner"])
def test_an_unknown_name_is_refused_with_those_that_exist(name: str) -> None:
    with pytest.raises(SpecError) as e:
        open_client(name)

    assert "command:PROGRAM ARGS" in e.value.hint
    assert "anthropic:MODEL" in e.value.details["allowed"]


@pytest.mark.parametrize("name", ["command", "file:", "openai: "])
def test_half_a_name_is_refused_with_its_form(name: str) -> None:
    with pytest.raises(SpecError, match="not whole") as e:
        open_client(name)

    assert e.value.hint.startswith("write ")


def test_open_quotes_are_refused() -> None:
    with pytest.raises(SpecError, match="No closing quotation"):
        open_client("command:a 'b")


def test_a_provider_without_its_library_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "qimeng_attention.llm.provider", raising=False)
    monkeypatch.setitem(sys.modules, "pydantic_ai", None)

    with pytest.raises(EnvironmentMissing, match="extra llm") as e:
        open_client("openai:gpt-4o")
    assert e.value.hint == "pip install 'qimeng-attention[llm]'"


def test_a_provider_without_its_key_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pydantic_ai", reason="the extra llm is not installed")
    for name, key in (("openai:x", "OPENAI_API_KEY"), ("anthropic:x", "ANTHROPIC_API_KEY")):
        monkeypatch.delenv(key, raising=False)
        monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
        with pytest.raises(EnvironmentMissing, match=f"{key} is not set"):
            open_client(name)


def test_nothing_of_a_providers_library_is_loaded_unasked() -> None:
    code = (
        "import sys, qimeng_attention.llm.clients; sys.exit(bool({'pydantic_ai', 'genai_prices'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_command_answers_through_all_of_it(tmp_path: Path) -> None:
    with Transcript(tmp_path / "t.jsonl", words="w") as transcript:
        said = clients.careful(open_client(f"command:{sys.executable} -c 'print(input())'"), transcript)
        assert said.complete(request("Kernel k")).text == "Kernel k\n"

    assert load(tmp_path / "t.jsonl").calls[0].usage.usd is None
