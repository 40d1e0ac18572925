"""What the tests of the MCP server share: a client in this process, and a program to work on."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

from mcp import Client

from qimeng_attention.integrations.mcp.root import Root
from qimeng_attention.integrations.mcp.server import build_server

SPEC = {"Hq": 4, "Hk": 2, "Dqk": 64, "mask": "causal", "outputs": ["O"]}
PROGRAM = """\
Kernel mine for a100
Size B, Sq, Sk, Hq, Hk
Size D = 64
Scalar scale f32 > 0
Tile BM = 64, BN = 64
Grid block = 0 : ceildiv(Sq, BM), head = 0 : Hq, batch = 0 : B
Allocate Q in global (B, Sq, Hq, D) bf16
Allocate K in global (B, Sk, Hk, D) bf16
Allocate V in global (B, Sk, Hk, D) bf16
Allocate Out in global (B, Sq, Hq, D) bf16
Allocate O in register (BM q, D) f32 = 0
Allocate m in register (BM q) f32 = -inf
Allocate l in register (BM q) f32 = 0
Let head_k = head // (Hq // Hk)
Copy Q (BM, D) in coordinate [batch, q = block * BM, head] from global to shared
for i = 0 : ceildiv(clamp((block + 1) * BM + Sk - Sq, 0, Sk), BN)
    Copy K (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared
    Compute GEMM Q, K.T and get S
    Compute Mask S where k <= q + Sk - Sq and k < Sk
    Compute OnlineSoftmax S, O, m, l with scale * log2e
    Copy V (BN, D) in coordinate [batch, k = i * BN, head_k] from global to shared
    Reshape S from (MMA_C, MMA_M, MMA_N) to (MMA_A, MMA_M, MMA_N_new) as bf16 and get P
    Compute GEMM P, V and accumulate O
end
Compute where(l == 0, 0, O / l) and get new O
Copy O (BM, D) in coordinate [batch, q = block * BM, head] from register to global Out
"""
SCHEDULE = """
Schedule
    ring K stages 1, V stages 1
    prefetch K 1 ahead, V 0 ahead
    store O through shared over Q
    copies async
    guard Mask of loop i where it is all true
    warps 4 along q
    grid longest first
"""
# A user's function that never ends; in its own folder it says who it is, who started it, and from which file.
SLEEPER = """\
import os, pathlib, time

def attention(Q, K, V, scale):
    place = pathlib.Path("processes.partial")
    place.write_text(f"{os.getpid()} {os.getppid()} {__file__}")
    place.rename("processes.txt")
    time.sleep(600)
"""


class Caller:
    """A client that gives the structured part of an answer, after looking at all of it."""

    def __init__(self, client: Client) -> None:
        self.client = client

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        answer = await self.client.call_tool(tool, arguments)
        fields, text = answer.structured_content, answer.content[0].text
        assert isinstance(fields, dict)
        assert answer.is_error is not fields["ok"]
        assert "Traceback" not in text
        assert not any(ord(c) < 32 for c in text)
        if not fields["ok"]:
            assert set(fields["error"]) == {"code", "message", "hint", "diagnostics", "details"}
            assert fields["error"]["message"]
        return fields

    async def ended(self, started: dict[str, Any], seconds: float = 120) -> dict[str, Any]:
        """Poll a job until it has ended."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            found = await self("poll", job=started["job"], wait_s=10)
            if found["state"] != "running":
                return found
        raise AssertionError(f"{started['job']} has not ended")


@asynccontextmanager
async def connected(root: Path, allow_references: bool = False) -> AsyncIterator[Caller]:
    """Give a client of a server in this process."""
    async with Client(build_server(Root.of(root, allow_references))) as client:
        yield Caller(client)


async def sleeping(call: Caller, root: Path) -> tuple[dict[str, Any], int, int]:
    """Start a judgement that never ends; give the job, the reference's process and the worker's."""
    (root / "sleeper.py").write_text(SLEEPER)
    started = await call("start_judge", program=PROGRAM, reference="sleeper.py:attention")
    reference, worker = await processes(root)
    return started, reference, worker


async def processes(root: Path) -> tuple[int, int]:
    """Wait until the function has said who it is."""
    found: list[list[str]] = []

    def said() -> bool:
        places = Path(tempfile.gettempdir()).glob("qimeng-reference-*/home/processes.txt")
        told = [place.read_text().split() for place in places]
        found[:] = [words for words in told if Path(words[2]).is_relative_to(root)]
        return bool(found)

    await within(60, said)
    return int(found[0][0]), int(found[0][1])


def alive(process: int) -> bool:
    """Tell whether a process runs; one that ended and waits for its parent does not."""
    try:
        os.kill(process, 0)
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def within(seconds: float, holds: Callable[[], bool]) -> None:
    """Wait until something holds."""
    with anyio.fail_after(seconds):
        while not holds():
            await anyio.sleep(0.05)
