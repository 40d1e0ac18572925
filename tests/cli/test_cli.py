"""The command line: every command, its JSON, its exit codes, and what bad input gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from qimeng_attention.cli import app

PROGRAMS = Path(__file__).parents[2] / "docs" / "design" / "programs"
GQA = str(PROGRAMS / "gqa_causal.tl")
COMMANDS = (
    "generate",
    "check",
    "interpret",
    "schedule",
    "translate",
    "build",
    "judge",
    "bench",
    "show",
    "targets",
    "doctor",
    "cache",
    "study summary",
)


def _run(*args: str) -> Result:
    result = CliRunner().invoke(app, list(args))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    assert "Traceback" not in result.output
    return result


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QIMENG_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help_with_an_example(command: str) -> None:
    result = _run(*command.split(), "--help")

    assert result.exit_code == 0
    assert "Example" in result.output
    assert "--json" in result.output


def test_check_accepts_a_program_and_says_so_in_json() -> None:
    result = _run("check", GQA, "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["kernels"][0]["outputs"] == ["Out", "Lse"]


def test_check_gives_every_finding_at_once(tmp_path: Path) -> None:
    text = Path(GQA).read_text().replace("K.T", "K").replace("bf16 and get P", "bf16 and get R")
    (tmp_path / "bad.tl").write_text(text)

    result = _run("check", str(tmp_path / "bad.tl"), "--json")

    found = json.loads(result.stdout)["diagnostics"]
    assert result.exit_code == 1
    assert {d["code"] for d in found} >= {"TL202", "TL101"}
    assert all(d["line"] > 0 and d["hint"] for d in found)


def test_sketch_code_and_schedule_can_each_be_stopped_at_and_fed_back(tmp_path: Path) -> None:
    code = _run("generate", "--Hq", "4", "--target", "A100", "--emit", "code", "--quiet")
    (tmp_path / "code.tl").write_text(code.stdout)

    scheduled = _run("schedule", str(tmp_path / "code.tl"))
    (tmp_path / "scheduled.tl").write_text(scheduled.stdout)
    source = _run("translate", str(tmp_path / "scheduled.tl"))

    assert (code.exit_code, scheduled.exit_code, source.exit_code) == (0, 0, 0)
    assert "Barrier" in scheduled.stdout
    assert "__global__" in source.stdout


def test_interpret_describes_outputs() -> None:
    result = _run("interpret", GQA, "--sizes", "B=1,Sq=20,Sk=30,Hq=2,Hk=1", "--scalars", "scale=0.1", "--json")

    tensors = {t["name"]: t for t in json.loads(result.stdout)["tensors"]}
    assert result.exit_code == 0
    assert tensors["Out"]["finite"] == "5120 of 5120"


def test_interpret_refuses_sizes_that_no_memory_holds() -> None:
    sizes = f"B={10**12},Sq=20,Sk=30,Hq={10**12},Hk=1"

    result = _run("interpret", GQA, "--sizes", sizes, "--scalars", "scale=0.1", "--json")

    assert result.exit_code == 2
    assert "elements" in json.loads(result.stdout)["message"]


@pytest.mark.cuda
def test_generate_writes_a_bundle_that_show_reads(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra")
    made = _run("generate", "--Hq", "2", "--Dqk", "64", "--target", "A100", "--out", str(tmp_path / "b"), "--json")
    shown = _run("show", str(tmp_path / "b"))

    outcome = json.loads(made.stdout)
    assert made.exit_code == 0
    assert outcome["verdict"]["verdict"] == "accepted"
    assert outcome["build"]["report"]["counts"]["HMMA"] > 0
    assert shown.exit_code == 0
    assert "A100" in shown.output


@pytest.mark.parametrize(
    ("args", "field", "code"),
    [
        (("--Hq", "32", "--Hk", "5", "--target", "A100"), "Hk", 2),
        (("--Dqk", "0", "--target", "A100"), "Dqk", 2),
        (("--Dqk", "82", "--target", "A100"), "Dqk", 2),
        (("--page-size", "24", "--target", "A100"), "page_size", 2),
        (("--seqused-k", "--target", "A100"), "Sq", 2),
        (("--target", "A1000"), "target", 2),
        (("--dtype", "bf16", "--target", "T4"), "dtype", 2),
        (("--dtype", "fp8", "--target", "A100"), "dtype", 2),
        (("--mask", "kv_idx <= qidx", "--target", "A100"), "mask", 2),
        (("--mask", "kv_idx <=", "--target", "A100"), "mask", 2),
        (("--score", "tahn(score)", "--target", "A100"), "score", 2),
        (("--target", "A100", "--arch", "sm_12"), "arch", 2),
        (("--target", "A100", "--emit", "cubine"), "emit", 2),
    ],
    ids=lambda x: " ".join(x) if isinstance(x, tuple) else str(x),
)
def test_a_request_that_makes_no_sense_names_field_and_way_out(args: tuple[str, ...], field: str, code: int) -> None:
    result = _run("generate", *args, "--json")

    error = json.loads(result.stdout)
    assert result.exit_code == code
    assert error["field"] == field
    assert error["hint"]
    assert error["message"]


def test_auto_without_a_gpu_says_what_to_do() -> None:
    result = _run("generate", "--Hq", "4", "--emit", "sketch")

    assert result.exit_code in (0, 3)
    if result.exit_code == 3:
        assert "--target" in result.output


@pytest.mark.parametrize("command", ["check", "schedule", "translate", "judge", "show"])
def test_a_missing_file_is_a_line(command: str, tmp_path: Path) -> None:
    result = _run(command, str(tmp_path / "none.tl"))

    assert result.exit_code == 2
    assert result.output.count("\n") <= 4


def test_an_unwritable_cache_costs_the_cache_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("QIMENG_CACHE_DIR", str(tmp_path / "file" / "below"))

    result = _run("cache", "--json")

    assert result.exit_code == 0


def test_an_unwritable_folder_costs_the_bundle_and_says_so(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra")
    (tmp_path / "file").write_text("")

    result = _run(
        "generate",
        "--Hq",
        "2",
        "--Dqk",
        "64",
        "--target",
        "A100",
        "--out",
        str(tmp_path / "file" / "b"),
        "--no-judge",
        "--json",
    )

    assert result.exit_code == 3
    assert json.loads(result.stdout)["build"] is not None
    assert "no bundle is written" in result.output


def test_doctor_and_targets_speak_json() -> None:
    assert {f["what"] for f in json.loads(_run("doctor", "--json").stdout)} >= {"GPU", "NVRTC and headers", "cache"}
    assert "A100" in {t["name"] for t in json.loads(_run("targets", "--json").stdout)}


def test_what_is_there_already_is_told_before_anything_is_made(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()

    result = _run("generate", "--Hq", "2", "--target", "A100", "--out", str(tmp_path / "b"))

    assert result.exit_code == 2
    assert "is there already" in result.output
    assert "── sketch" not in result.output


def test_conditions_as_numpy_writes_them_are_explained() -> None:
    result = _run("generate", "--mask", "kv_idx <= q_idx & kv_idx > 3", "--target", "A100", "--json")

    assert result.exit_code == 2
    assert json.loads(result.stdout)["hint"] == "write `and`"


EXAMPLES = Path(__file__).parents[2] / "examples"


def test_a_function_of_ones_own_is_compared_first() -> None:
    spec, function = EXAMPLES / "capped_window.yaml", f"{EXAMPLES / 'capped_window.py'}:attention"
    asked = ["generate", str(spec), "--reference", function, "--target", "A100", "--emit", "sketch"]

    result = _run(*asked)
    other = _run(*asked, "--softcap", "50", "--json")

    assert result.exit_code == 0
    assert "attention (numpy) agrees with the description in" in result.output
    assert result.output.index("your function") < result.output.index("── sketch")
    assert other.exit_code == 3
    assert "attention differs from the description: out[" in json.loads(other.stdout)["message"]


@pytest.mark.cuda
def test_an_edited_source_is_built_again(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra")
    (tmp_path / "k.cu").write_text(_run("translate", str(_scheduled(tmp_path))).stdout)

    result = _run("build", str(tmp_path / "k.cu"), "--arch", "sm_90", "--json")

    assert result.exit_code == 0
    assert json.loads(result.stdout)["arch"] == "sm_90"


@pytest.mark.cuda
def test_an_error_of_the_compiler_names_the_line_of_tl(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings", reason="needs the build extra")
    source = _run("translate", str(_scheduled(tmp_path))).stdout.replace("tl::gemm_shared", "tl::gemm_share")
    (tmp_path / "k.cu").write_text(source)

    result = _run("build", str(tmp_path / "k.cu"), "--json")

    error = json.loads(result.stdout)
    line = next(n for n, text in enumerate((tmp_path / "s.tl").read_text().splitlines(), 1) if "GEMM Q, K.T" in text)
    assert result.exit_code == 3
    assert error["diagnostics"][0]["line"] == line


def _scheduled(folder: Path) -> Path:
    path = folder / "s.tl"
    path.write_text(_run("schedule", GQA).stdout)
    return path


def test_named_tensors_come_from_flags() -> None:
    slopes = ("--Hq", "4", "--score", "score - slopes[h] * kv_idx", "--tensor", "slopes:Hq:f32")
    result = _run("generate", *slopes, "--target", "A100", "--emit", "code", "-q")
    assert result.exit_code == 0, result.output
    assert "Allocate Slopes in global (Hq) f32" in result.stdout

    result = _run("generate", *slopes[:-1], "slopes:Hq", "--target", "A100", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stdout)["hint"] == "write NAME:DIMS:TYPE, as slopes:Hq:f32 or doc:B,Sk:i32"


def test_generate_takes_weights(tmp_path: Path) -> None:
    sigmoid = _run("generate", "--Hq", "4", "--weights", "sigmoid", "--target", "A100", "--emit", "code", "--quiet")
    (tmp_path / "spec.yaml").write_text("Hq: 4\nmask: causal\n")
    relu = _run(
        "generate", str(tmp_path / "spec.yaml"), "--weights", "relu", "--target", "A100", "--emit", "sketch", "--quiet"
    )
    wrong = _run("generate", "--Hq", "4", "--weights", "softmax+sinks", "--target", "A100", "--json")

    assert "Compute SigmoidWeights S" in sigmoid.output
    assert "Compute ReluWeights S" in relu.output
    assert wrong.exit_code == 2
    assert json.loads(wrong.stdout)["nearest"] == "softmax+sink"
