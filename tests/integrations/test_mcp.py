"""The MCP server through a whole generation, driven by the SDK's client in this process."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest

pytest.importorskip("mcp", reason="needs the extra mcp")

from integrations.mcp_client import PROGRAM, SCHEDULE, SPEC, Caller, connected
from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.integrations.mcp import reference, skill
from qimeng_attention.runtime import load
from qimeng_attention.schedule import REWRITINGS
from qimeng_attention.tl.functions import FUNCTIONS
from qimeng_attention.tl.statements import TABLE
from qimeng_attention.workflow.present import detect

FAULTY = PROGRAM.replace("K.T", "K").replace("Reshape S from", "# S from").replace("GEMM P, V", "GEMM S, V")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIMENG_CACHE_DIR", str(tmp_path / "cache"))


async def _mended(call: Caller) -> str:
    """Check a program with two faults, and mend each as its finding says."""
    text = FAULTY
    for _ in range(3):
        answer = await call("check", program=text)
        if answer["ok"]:
            return text
        for finding in answer["error"]["diagnostics"]:
            line = text.splitlines()[finding["line"] - 1]
            assert finding["text"] == line
            assert line[finding["column"] - 1 :].strip()
            if "K.T" in finding["hint"]:
                assert line.strip() == "Compute GEMM Q, K and get S"
                text = text.replace("GEMM Q, K and", "GEMM Q, K.T and")
            elif "Reshape" in finding["hint"]:
                entry = await call("statements", name="Reshape")
                text = text.replace("    # S from", "    Reshape S from").replace("GEMM S, V", "GEMM P, V")
                assert entry["example"] in text
    raise AssertionError(text)


def _arch() -> str:
    """Give the architecture of the GPU that is present, on which the bundle will be judged; "" where there is none."""
    try:
        return detect().arch
    except EnvironmentMissing:
        return ""


def _registers(built: dict) -> int:
    return built["result"]["kernels"][0]["report"]["registers"]


@pytest.mark.cuda
def test_an_agent_goes_from_a_description_to_a_judged_bundle(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra")

    async def author() -> None:
        async with connected(tmp_path) as call:
            understood = await call("understand", spec=SPEC)
            assert {"what": "seen", "how": "kv_idx <= q_idx + Sk - Sq"} in understood["formula"]
            assert understood["mask"]["rows"][0][:6] == "█████·"
            names = (await call("statements"))["names"]
            assert "Reshape" in names["statement"]
            program = await _mended(call)
            assert program == PROGRAM
            ran = await call(
                "interpret",
                program=program,
                sizes={"B": 1, "Sq": 70, "Sk": 90, "Hq": 2, "Hk": 1},
                scalars={"scale": 0.125},
            )
            assert {t["name"] for t in ran["tensors"]} == {"Q", "K", "V", "Out"}
            program += SCHEDULE
            scheduled = await call("schedule", program=program, target="A100")
            assert [step["choice"].split()[0] for step in scheduled["steps"]][:2] == ["explicit", "ring"]
            translated = await call("translate", program=scheduled["scheduled"], target="A100")
            assert "__global__" in translated["kernels"][0]["source"]
            built = await call.ended(await call("start_build", program=program, target="A100"))
            assert built["result"]["kernels"][0]["report"]["spill_store_bytes"] == 0
            judged = await call.ended(await call("start_judge", program=program, spec=SPEC))
            assert judged["result"]["verdict"] == "accepted"
            whole = {"program": program, "spec": SPEC, "target": "A100", "arch": _arch(), "out": "bundles/mine"}
            made = await call.ended(await call("start_generate", **whole))
            assert made["result"]["bundle"] == "bundles/mine"
            assert made["result"]["verdict"]["verdict"] == "accepted"
            shown = await call("show", bundle="bundles/mine", programs=True)
            assert shown["kernel"] == "mine"
            assert "GEMM P, V" in shown["programs"]["code.tl"]
            assert {"what": "registers", "found": f"{_registers(made)} a thread"} in shown["resources"]
            timed = await call.ended(await call("start_bench", bundle="bundles/mine", batch=1, length=256))
            assert timed["state"] == "done" or timed["error"]["code"] == "Q700"  # no GPU, or no PyTorch
            rejudged = await call.ended(await call("start_judge", bundle="bundles/mine"))
            assert rejudged["result"]["verdict"] == "accepted"

    anyio.run(author)

    assert load(tmp_path / "bundles" / "mine").manifest.kernel == "mine"


def test_the_built_in_author_shows_its_program_with_reasons(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path) as call:
            made = await call.ended(await call("start_generate", spec=SPEC, target="A100", until="code"))
            assert "Schedule" in made["result"]["code"]
            assert all(r["why"] for r in made["result"]["reasons"]["reasons"])
            assert (await call("check", program=made["result"]["code"]))["ok"]

    anyio.run(ask)

    assert not [p for p in tmp_path.iterdir() if p.name != "cache"]


def test_a_wrong_program_is_rejected_with_the_place_and_no_expected_value(tmp_path: Path) -> None:
    async def ask() -> dict:
        async with connected(tmp_path) as call:
            wrong = PROGRAM.replace("k <= q + Sk - Sq", "k < q + Sk - Sq")
            return (await call.ended(await call("start_judge", program=wrong, spec=SPEC)))["result"]

    verdict = anyio.run(ask)

    assert verdict["verdict"] == "rejected"
    assert verdict["failed"] > 0
    assert "Sq=" in verdict["failures"][0]["case"]
    assert verdict["failures"][0]["reason"].startswith("Out[")
    assert "not what it should be within" in verdict["failures"][0]["reason"]
    assert "expected" not in json.dumps(verdict)


def test_tools_and_resources_are_described(tmp_path: Path) -> None:
    async def ask() -> None:
        async with connected(tmp_path) as call:
            tools = {t.name: t for t in (await call.client.list_tools()).tools}
            assert {"start_build", "start_judge", "start_generate", "start_bench", "poll", "cancel"} <= set(tools)
            for tool in tools.values():
                assert tool.description
                assert all(p.get("description") for p in tool.input_schema["properties"].values()), tool.name
            texts = {
                str(r.uri): (await call.client.read_resource(r.uri)).contents[0].text
                for r in (await call.client.list_resources()).resources
            }
            assert texts["qimeng://skill"] == skill()
            assert "kernel_head" in texts["qimeng://grammar"]
            for name in [rule.name for rule in TABLE.values()] + list(FUNCTIONS) + list(REWRITINGS):
                assert f"**{name}" in texts["qimeng://language"], name
            for tool in [w for w in skill().split("`") if w.startswith("start_") and w != "start_…"]:
                assert tool in tools

    anyio.run(ask)


@pytest.mark.parametrize("name", sorted(reference.entries()))
def test_everything_that_has_a_name_has_an_entry(name: str) -> None:
    entry = reference.entry(name.upper())

    assert entry["name"].casefold() == name.casefold()
    assert entry["doc"]
