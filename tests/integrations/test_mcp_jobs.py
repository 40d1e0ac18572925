"""Jobs of the MCP server: waited for, cancelled, told of when they die, ended with the server."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import anyio
import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

from mcp import Client
from mcp.client.stdio import StdioServerParameters, stdio_client

from integrations.mcp_client import PROGRAM, SPEC, Caller, alive, connected, processes, sleeping, within
from qimeng_attention.integrations.mcp import jobs, tools

MOST_S = 25.0


def test_a_poll_that_waits_answers_in_time_and_other_calls_meanwhile(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path, allow_references=True) as call:
            started, _, _ = await sleeping(call, tmp_path)
            begun = time.monotonic()
            async with anyio.create_task_group() as group:
                group.start_soon(lambda: call("poll", job=started["job"], wait_s=tools.MOST_POLL_S))
                assert (await call("check", program=PROGRAM))["ok"]
                assert time.monotonic() - begun < MOST_S / 2
            assert tools.MOST_POLL_S <= time.monotonic() - begun < MOST_S
            found = await call("poll", job=started["job"], wait_s=0)
            assert (found["state"], found["ok"]) == ("running", True)
            assert "result" not in found
            refused = await call("poll", job=started["job"], wait_s=tools.MOST_POLL_S + 1)
            assert refused["error"]["details"]["field"] == "wait_s"

    anyio.run(ask)


def test_a_quick_tool_that_takes_long_answers_with_a_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tools, "WAIT_S", 0.0)

    async def ask() -> None:
        async with connected(tmp_path) as call:
            started = await call("check", program=PROGRAM)
            assert started["state"] == "running"
            assert started["job"] in started["hint"]
            assert (await call.ended(started))["result"]["kernels"][0]["name"] == "mine"

    anyio.run(ask)


def test_a_cancelled_job_takes_its_processes_with_it(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path, allow_references=True) as call:
            started, reference, worker = await sleeping(call, tmp_path)
            stopped = await call("cancel", job=started["job"])
            assert stopped["state"] == "cancelled"
            await within(20, lambda: not alive(worker) and not alive(reference))
            found = await call("poll", job=started["job"], wait_s=0)
            assert (found["state"], found["error"]["code"]) == ("cancelled", "Q800")
            assert (await call("cancel", job=started["job"]))["state"] == "cancelled"
            assert (await call("check", program=PROGRAM))["ok"]

    anyio.run(ask)


def test_a_job_that_is_killed_from_outside_is_told_of_by_name(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path, allow_references=True) as call:
            started, reference, worker = await sleeping(call, tmp_path)
            os.kill(worker, signal.SIGKILL)
            found = await call.ended(started, 20)
            assert (found["state"], found["ok"], found["error"]["code"]) == ("died", False, "Q800")
            assert started["job"] in found["error"]["message"]
            assert "SIGKILL" in found["error"]["message"]
            assert [j["state"] for j in (await call("jobs"))["jobs"]] == ["died"]
            assert (await call("check", program=PROGRAM))["ok"]
            await within(20, lambda: not alive(reference))

    anyio.run(ask)


def test_a_process_that_died_while_it_waited_costs_nothing(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path) as call:
            assert (await call("check", program=PROGRAM))["ok"]
            for worker in _workers():
                os.kill(worker, signal.SIGKILL)
                await within(20, lambda worker=worker: not alive(worker))
            assert (await call("check", program=PROGRAM))["ok"]

    anyio.run(ask)
    assert not _workers()


def _workers() -> list[int]:
    """Give the processes that this one has started for jobs."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            words = (entry / "cmdline").read_text()
        except OSError:
            continue
        if parent == os.getpid() and "integrations.mcp.worker" in words:
            found.append(int(entry.name))
    return found


def test_a_process_that_cannot_start_is_a_job_that_died(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = (sys.executable, "-c", "raise SystemExit('no such stage')")
    monkeypatch.setattr(jobs.Jobs.__init__, "__defaults__", (command,))

    async def ask() -> None:
        async with connected(tmp_path) as call:
            answer = await call("check", program=PROGRAM)
            assert answer["error"]["code"] == "Q800"
            assert "check-1 died" in answer["error"]["message"]

    anyio.run(ask)


def test_more_jobs_than_a_machine_takes_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "MOST_RUNNING", 1)

    async def ask() -> None:
        async with connected(tmp_path, allow_references=True) as call:
            started, _, _ = await sleeping(call, tmp_path)
            refused = await call("start_judge", program=PROGRAM, spec=SPEC)
            assert refused["error"]["code"] == "Q800"
            assert started["job"] in refused["error"]["message"]

    anyio.run(ask)


def test_jobs_end_with_the_session(tmp_path: Path) -> None:
    async def ask() -> tuple[int, int]:
        async with connected(tmp_path, allow_references=True) as call:
            _, reference, worker = await sleeping(call, tmp_path)
            return reference, worker

    found = anyio.run(ask)

    assert not any(map(alive, found))


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes by /proc")
def test_over_stdio_jobs_end_with_a_server_that_is_killed(tmp_path: Path) -> None:
    command = ["-c", "from qimeng_attention.cli import main; main()", "mcp"]
    server = StdioServerParameters(
        command=sys.executable, args=[*command, "--root", str(tmp_path), "--allow-references"]
    )

    async def ask() -> tuple[int, int]:
        with (tmp_path / "server.txt").open("w") as said:
            async with Client(stdio_client(server, errlog=said)) as client:
                call = Caller(client)
                assert (await call("check", program=PROGRAM))["ok"]
                await sleeping(call, tmp_path)
                reference, worker = await processes(tmp_path)
                parent = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
                os.kill(parent, signal.SIGKILL)
                await within(30, lambda: not alive(worker) and not alive(reference))
                return reference, worker

    anyio.run(ask)
    assert (tmp_path / "server.txt").read_text() == ""
