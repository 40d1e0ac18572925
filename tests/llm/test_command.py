from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from llm.scripted import request
from qimeng_attention.llm import chat, command
from qimeng_attention.llm.command import CommandClient


def python(code: str, *words: str) -> CommandClient:
    return CommandClient([sys.executable, "-c", f"import os, sys, time\n{code}", *words])


def test_a_program_reads_the_prompt_and_answers() -> None:
    text = "é" * 200_000  # more than a pipe holds, both ways
    said = python("sys.stdout.write(sys.stdin.read().upper())").complete(request(text))

    assert said.text == text.upper()


def test_a_program_need_not_read_the_prompt() -> None:
    assert python("os.close(0); print('Kernel')").complete(request("x" * 500_000)).text == "Kernel\n"


def test_no_shell_reads_the_arguments() -> None:
    assert python("print(sys.argv[1])", "$HOME; ls").complete(request()).text == "$HOME; ls\n"


@pytest.mark.parametrize(
    ("code", "fault", "words"),
    [
        ("print('half'); print('why', file=sys.stderr); sys.exit(3)", chat.ServerFault, "exit code 3"),
        ("os.kill(os.getpid(), 9)", chat.ServerFault, "signal 9"),
        ("pass", chat.Empty, "nothing"),
        ("print('  ')", chat.Empty, "nothing"),
        ("os.write(1, b'Kernel \\xff')", chat.Garbled, "no UTF-8"),
    ],
    ids=["exit code", "signal", "empty", "blank", "invalid UTF-8"],
)
def test_ends_are_told_apart(code: str, fault: type[chat.ClientFault], words: str) -> None:
    with pytest.raises(fault, match=words):
        python(code).complete(request())


def test_what_a_failing_program_said_is_kept() -> None:
    with pytest.raises(chat.ServerFault) as e:
        python("print('half'); print('why', file=sys.stderr); sys.exit(3)").complete(request())

    assert e.value.raw == "half\n\n[standard error]\nwhy"


def test_a_program_that_does_not_exist_is_named() -> None:
    with pytest.raises(chat.Misconfigured, match="no-such-program cannot be started: No such file"):
        CommandClient(["no-such-program"]).complete(request())


def test_a_program_out_of_time_is_ended_with_what_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
if os.fork() == 0:
    open({str(pid)!r}, 'w').write(str(os.getpid()))
print('begun', flush=True)
time.sleep(60)
"""
    began = time.monotonic()
    with pytest.raises(chat.TimedOut) as e:
        python(code).complete(replace(request(), timeout_s=1.0))

    assert time.monotonic() - began < 20
    assert e.value.raw.startswith("begun")
    assert gone(int(pid.read_text("utf-8")))


def test_what_a_program_leaves_behind_is_ended_too(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
if os.fork() == 0:
    os.close(1)
    open({str(pid)!r}, 'w').write(str(os.getpid()))
    time.sleep(60)
while not os.path.exists({str(pid)!r}) or not os.path.getsize({str(pid)!r}): time.sleep(0.01)
print('Kernel')
"""
    assert python(code).complete(request()).text == "Kernel\n"
    assert gone(int(pid.read_text("utf-8")))


def test_a_program_that_prints_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "LONGEST_ANSWER", 1 << 20)

    with pytest.raises(chat.Garbled, match="more than 1 MiB"):
        python("while True: print('x' * 1000)").complete(request())


def gone(pid: int) -> bool:
    """Tell whether a process ends within seconds; one that nobody has waited for counts as ended."""
    for _ in range(200):
        try:
            os.kill(pid, 0)
            if "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text("utf-8"):
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False
