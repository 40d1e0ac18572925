"""A reference that does more than compute: what it may not do, and that nothing of it reaches this process."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import numpy as np
import pytest

from qimeng_attention.errors import JudgeError
from qimeng_attention.judge import open_reference
from qimeng_attention.judge import reference_worker as worker

HEAD = """
import ctypes, os, shutil, signal, socket, subprocess, sys, threading, time, urllib.request
from pathlib import Path
import numpy as np
{top}
def attention(q):
    {body}
    return q
"""


def call(tmp_path: Path, body: str, *, top: str = "", timeout_s: float = 60.0, memory: int = 8 << 30) -> np.ndarray:
    """Call a function with this body, and give what it gives."""
    (tmp_path / "mine.py").write_text(HEAD.format(top=top, body=body))
    place = f"{tmp_path / 'mine.py'}:attention"
    with open_reference(place, "numpy", timeout_s=timeout_s, memory_bytes=memory) as function:
        found: np.ndarray = function(q=np.ones(3))["0"]
        return found


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a folder that is none of the reference's, with a file in it; it is this process's working directory."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "kept").write_text("kept")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("OUTSIDE", str(folder))
    return folder


@pytest.mark.parametrize(
    "body",
    [
        "open(HERE + '/new', 'w')",
        "open(HERE + '/kept', 'r+')",
        "open(HERE + '/kept', 'ab')",
        "os.open(HERE + '/new', os.O_CREAT | os.O_WRONLY)",
        "Path(HERE, 'new').write_text('x')",
        "os.remove(HERE + '/kept')",
        "os.rename(HERE + '/kept', HERE + '/new')",
        "os.rename(HERE + '/kept', 'mine')",
        "os.mkdir(HERE + '/new')",
        "os.symlink(HERE, HERE + '/new')",
        "os.truncate(HERE + '/kept', 0)",
        "os.chmod(HERE + '/kept', 0)",
        "shutil.rmtree(HERE)",
        "os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=os.open(HERE, os.O_RDONLY))",
        "os.chdir(HERE); open('new', 'w')",
        "os.chmod(os.open(HERE + '/kept', os.O_RDONLY), 0)",
        "os.utime(HERE + '/kept', (0, 0))",
        "os.symlink(HERE, 'way'); open('way/new', 'w')",
        "np.save(HERE + '/new', q)",
        "open(__file__, 'w')",
    ],
)
def test_it_writes_in_its_own_folder_alone(outside: Path, tmp_path: Path, body: str) -> None:
    with pytest.raises(JudgeError, match=r"PermissionError: a reference (writes|changes) no files"):
        call(tmp_path, body, top=f"HERE = {str(outside)!r}")
    assert {p.name: p.read_text() for p in outside.iterdir()} == {"kept": "kept"}
    assert "def attention" in (tmp_path / "mine.py").read_text()


@pytest.mark.usefixtures("outside")
def test_what_it_writes_in_its_working_directory_goes_with_it(tmp_path: Path, outside: Path) -> None:
    body = "open('notes', 'w').write('x'); np.save('a', q); q = 2 * q; os.mkdir('x'); shutil.rmtree('x')"

    assert call(tmp_path, body).tolist() == [2, 2, 2]
    assert [p.name for p in outside.iterdir()] == ["kept"]
    assert {p.name for p in tmp_path.iterdir()} == {"mine.py"}  # no bytecode beside it either


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("os.fork()", "starts no processes"),
        ("os.system('true')", "starts no processes"),
        ("subprocess.run(['true'])", "starts no processes"),
        ("os.execv('/bin/true', ['true'])", "starts no processes"),
        ("os.posix_spawn('/bin/true', ['true'], {})", "starts no processes"),
        ("os.kill(os.getppid(), signal.SIGKILL)", "ends no processes"),
        ("os.killpg(0, signal.SIGKILL)", "ends no processes"),
        ("socket.create_connection(('127.0.0.1', PORT))", "uses no network"),
        ("socket.socket().bind(('127.0.0.1', 0))", "uses no network"),
        ("socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', PORT))", "uses no network"),
        ("socket.getaddrinfo('localhost', 80)", "uses no network"),
    ],
)
def test_it_starts_nothing_and_reaches_nobody(tmp_path: Path, body: str, says: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        with pytest.raises(JudgeError, match=f"PermissionError: a reference {says}"):
            call(tmp_path, body, top=f"PORT = {server.getsockname()[1]}")
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_same_holds_while_its_file_is_loaded(tmp_path: Path, outside: Path) -> None:
    with pytest.raises(JudgeError, match="fails when it is loaded: PermissionError"):
        call(tmp_path, "pass", top=f"open({str(outside / 'new')!r}, 'w')")
    assert [p.name for p in outside.iterdir()] == ["kept"]


def test_it_sees_no_secret_and_no_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-secret")
    monkeypatch.setenv("HOME", "/somewhere/of/mine")
    allowed = "('PATH', 'LANG', 'LC_CTYPE', 'LD_LIBRARY_PATH', 'SYSTEMROOT', 'HOME', 'TMPDIR', 'PYTHONPATH',"
    allowed += " 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS', 'MKL_NUM_THREADS')"
    body = f"assert not set(os.environ) - set({allowed}), sorted(os.environ)"
    body += "; assert os.environ['HOME'] == os.getcwd() == os.environ['TMPDIR']"

    assert call(tmp_path, body).tolist() == [1, 1, 1]


def test_what_it_patches_stays_in_its_process(tmp_path: Path) -> None:
    before = np.sum, np.load, os.getcwd
    body = "np.sum = np.exp = np.matmul = None; sys.modules['qimeng_attention.judge.judge'] = None"

    assert call(tmp_path, body).tolist() == [1, 1, 1]
    assert (np.sum, np.load, os.getcwd) == before


def test_what_it_prints_is_neither_an_answer_nor_ours(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    body = "print('{\"outputs\": {}}'); sys.stderr.write('\\x1b[2J'); os.write(1, b'x'); os.write(2, b'y')"

    assert call(tmp_path, body).tolist() == [1, 1, 1]
    shown = capfd.readouterr()
    assert shown.out == shown.err == ""


def test_time_and_memory_have_an_end_and_threads_go_with_it(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(JudgeError, match="gives nothing within 2 s"):
        call(tmp_path, "threading.Thread(target=time.sleep, args=(600,)).start(); time.sleep(600)", timeout_s=2)
    with pytest.raises(JudgeError, match="more memory than it may have"):
        call(tmp_path, "a = [bytes(1 << 26) for _ in range(1000)]", memory=1 << 30)
    assert time.monotonic() - began < 30


def test_what_it_prints_without_end_fills_no_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.MOST_FILE_BYTES <= 1 << 30
    with pytest.raises(JudgeError, match="File too large"):
        call(tmp_path, "f = open('big', 'wb'); f.truncate(1 << 31)")


@pytest.mark.parametrize(
    "line",
    [
        "{}", "[]", "no JSON", "[" * 100_000, '{"outputs": {"0": "../../../etc/passwd"}}', '{"outputs": {"0": 3}}',
        '{"outputs": {"0": "7.out.npy"}}', '{"outputs": []}', '{"wrong": 3}',
    ],
)  # fmt: skip
def test_answers_that_it_forges_are_its_own_fault(tmp_path: Path, line: str) -> None:
    body = f"[os.write(n, {(line + chr(10)).encode()!r}) for n in range(3, 12) if can(n)]; time.sleep(600)"
    top = "def can(n):\n    try:\n        return os.readlink(f'/proc/self/fd/{n}').startswith('pipe:')"
    top += "\n    except OSError:\n        return False"

    with pytest.raises(JudgeError, match=r"attention (answers something|gives files|3)"):
        call(tmp_path, body, top=top, timeout_s=20)


def test_the_words_of_its_errors_are_short_and_one_line(tmp_path: Path) -> None:
    with pytest.raises(JudgeError) as caught:
        call(tmp_path, "raise ValueError('a' * 10**7 + '\\n# Answer')")
    assert len(caught.value.message) < 400
    assert "\n" not in caught.value.message
