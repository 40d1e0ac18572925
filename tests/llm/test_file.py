from __future__ import annotations

from pathlib import Path

import pytest

from llm.scripted import request
from qimeng_attention.llm import chat
from qimeng_attention.llm.file import END, FileClient

ANSWER = "Kernel k\n"


def waiting(folder: Path, asked: chat.Request) -> tuple[Path, Path]:
    """Ask without an answer; give the prompt's file and the answer's."""
    with pytest.raises(chat.Waiting):
        FileClient(folder).complete(asked)
    prompt = next(p for p in folder.glob("*.prompt.md") if p.read_text("utf-8") == asked.rendered())
    return prompt, prompt.with_name(prompt.name.replace(".prompt.", ".answer."))


def test_a_prompt_is_written_word_for_word_with_the_rules_beside_it(tmp_path: Path) -> None:
    asked = request("Write é.", stage="Repair 1", sample=2)
    prompt, answer = waiting(tmp_path / "new" / "folder", asked)

    assert prompt.name == f"001-repair-1-s2-{asked.digest[:8]}.prompt.md"
    assert prompt.read_text("utf-8") == "Write é."
    assert END in (prompt.parent / "README.md").read_text("utf-8")
    with pytest.raises(chat.Waiting) as e:
        FileClient(prompt.parent).complete(asked)
    assert str(answer) in e.value.hint
    assert e.value.exit_code == 4


def test_a_run_that_was_stopped_finds_the_same_files(tmp_path: Path) -> None:
    first, answer = waiting(tmp_path, request("one"))
    second, _ = waiting(tmp_path, request("two"))
    answer.write_text(f"{ANSWER}\n{END}\n", "utf-8")

    assert second.name.startswith("002-")
    assert FileClient(tmp_path).complete(request("one")).text == ANSWER
    assert waiting(tmp_path, request("two"))[0] == second
    assert len(list(tmp_path.glob("*.prompt.md"))) == 2
    assert first.exists()


@pytest.mark.parametrize(
    "text",
    ["", "Kernel", "Kernel k\n", f"Kernel {END}", f"{END}\nKernel", f"Kernel\n{END}\nmore\n", END[:-1]],
    ids=range(7),
)
def test_an_answer_without_its_last_line_is_still_being_written(text: str, tmp_path: Path) -> None:
    _, answer = waiting(tmp_path, request())
    answer.write_text(text, "utf-8")

    with pytest.raises(chat.Waiting, match="still being written"):
        FileClient(tmp_path).complete(request())


@pytest.mark.parametrize("end", [f"\n{END}", f"\n{END}\n\n", f"\r\n  {END}  \r\n"], ids=range(3))
def test_the_last_line_is_no_part_of_the_answer(end: str, tmp_path: Path) -> None:
    _, answer = waiting(tmp_path, request())
    answer.write_bytes(("\ufeffa\n" + END + "\nKernel k" + end).encode())

    assert FileClient(tmp_path).complete(request()).text == f"a\n{END}\nKernel k\n"


def test_who_answers_is_said_in_the_folder(tmp_path: Path) -> None:
    _, answer = waiting(tmp_path, request())
    answer.write_text(f"{ANSWER}{END}", "utf-8")
    assert FileClient(tmp_path).complete(request()).model == f"file:{tmp_path}"
    (tmp_path / "model.txt").write_text("some-model-5\n", "utf-8")

    assert FileClient(tmp_path).complete(request()).model == "some-model-5"
    assert FileClient(tmp_path, model="other").complete(request()).model == "other"


def test_an_answer_to_another_prompt_is_refused_with_what_to_remove(tmp_path: Path) -> None:
    prompt, answer = waiting(tmp_path, request())
    answer.write_text(f"{ANSWER}{END}", "utf-8")
    prompt.write_text("edited", "utf-8")

    with pytest.raises(chat.Stale, match="not the prompt that is asked now") as e:
        FileClient(tmp_path).complete(request())
    assert prompt.name in e.value.hint
    assert answer.name in e.value.hint

    prompt.unlink()
    with pytest.raises(chat.Stale, match="not there"):
        FileClient(tmp_path).complete(request())
    answer.unlink()
    assert waiting(tmp_path, request())[0].exists()


def test_an_answer_that_is_no_text_is_told_apart(tmp_path: Path) -> None:
    _, answer = waiting(tmp_path, request())
    answer.write_bytes(b"\xff\n" + END.encode())
    with pytest.raises(chat.Garbled, match="no UTF-8") as garbled:
        FileClient(tmp_path).complete(request())
    answer.write_text(f"\n{END}\n", "utf-8")
    with pytest.raises(chat.Empty) as empty:
        FileClient(tmp_path).complete(request())

    assert not garbled.value.retry
    assert not empty.value.retry


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("", "utf-8")

    with pytest.raises(chat.Misconfigured, match="cannot be read or written"):
        FileClient(tmp_path / "f").complete(request())


def test_a_client_with_patience_waits_for_the_answer(tmp_path: Path) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        if now[0] == 3:
            prompt = next(tmp_path.glob("*.prompt.md"))
            prompt.with_name(prompt.name.replace(".prompt.", ".answer.")).write_text(ANSWER + END, "utf-8")

    client = FileClient(tmp_path, patience_s=5.0, clock=lambda: now[0], sleep=sleep)

    assert client.complete(request()).text == ANSWER
    with pytest.raises(chat.Waiting):
        client.complete(request(sample=1))
    assert now[0] == 8
