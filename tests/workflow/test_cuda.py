"""A model that writes CUDA: every gate up to a bundle that waits for a GPU, and what comes of the verdict on it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
from typer.testing import CliRunner

from qimeng_attention.author.llm.includes import ALLOWED, check_includes
from qimeng_attention.author.llm.methods import method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.build import Cache, build, compile_apart
from qimeng_attention.cli import app
from qimeng_attention.errors import BundleError, SpecError
from qimeng_attention.judge import Check, Verdict, open_reference
from qimeng_attention.judge.device import Isolated
from qimeng_attention.judge.process import Process
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.llm.chat import Reply, Request, Waiting
from qimeng_attention.runtime import load, read_folder
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow.authoring import Sample, Truth, write_sample
from qimeng_attention.workflow.gpu import BUNDLE, VERDICT, OnGpu, bundle_digest
from qimeng_attention.workflow.stages import Results, find_target

EXAMPLES = Path(__file__).parents[2] / "examples"
WANTED = Wanted("Softmax attention.", "plain", (64, 64), "bf16")
SOURCE = (Path(__file__).parent / "plain.cu").read_text()


class Answers:
    """A client that gives the same answers each time it is asked for them, as a transcript does."""

    name = "answers"

    def __init__(self, *texts: str) -> None:
        self.texts, self.asked = texts, list[Request]()

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        return Reply(self.texts[len(request.messages) // 2], "answers")


@pytest.fixture(scope="module")
def truth() -> Iterator[Truth]:
    with open_reference(f"{EXAMPLES / 'squared_relu.py'}:attention") as function:
        assert isinstance(function, Reference)
        yield Truth(function=function)


def cuda(source: str) -> str:
    return f"Words.\n```cuda\n{source}```\n"


def sample(truth: Truth, client: Answers, folder: Path, name: str = "vanilla", repairs: int = 3) -> Sample:
    results = Results(*find_target("A100"))
    return write_sample(WANTED, truth, client, results, method(name), repairs=repairs, gpu=OnGpu(folder))


def refused(truth: Truth, source: str, folder: Path) -> Sample:
    made = sample(truth, Answers(cuda(source)), folder, repairs=0)

    assert not made.solved
    return made


def verdict_on(place: Path, accepted: bool = True, **changed: object) -> Verdict:
    """Give what a judge might say of the bundle that waits in a folder."""
    wrong = Check(case="normal, Sq=3", output="Out", passed=False, worst_error=0.5, bound=0.01, mean_error=0.1,
                  mean_bound=0.01, reason="Out[0, 1, 2, 3] is 0.75, expected 0.25")  # fmt: skip
    stopped = Check.of_stop("spikes, Sq=4", "writes outside of Out", ())
    fields = {
        "verdict": "accepted" if accepted else "rejected",
        "reason": "as asked" if accepted else "2 of 2 comparisons failed",
        "subject": "plain",
        "where": "gpu",
        "digest": bundle_digest(read_folder(place / BUNDLE).manifest),
        "entropy": 1,
        "seed": 1,
        "checks": () if accepted else (wrong, stopped),
    }
    return Verdict.model_validate(fields | changed)


def put(place: Path, verdict: Verdict) -> None:
    (place / VERDICT).write_text(json.dumps(verdict.to_json()))


def waiting(truth: Truth, client: Answers, folder: Path) -> Path:
    """Run up to the bundle that waits, and give its folder."""
    with pytest.raises(Waiting, match="has not been judged on a GPU yet") as fault:
        sample(truth, client, folder)
    return Path(fault.value.details["folder"])


# ------------------------------------------------------------------ a right kernel
@pytest.mark.cuda
@pytest.mark.parametrize("name", ["vanilla", "cot"])
def test_a_kernel_waits_for_a_verdict_and_goes_on_with_it(truth: Truth, tmp_path: Path, name: str) -> None:
    client = Answers(cuda(SOURCE))
    place = waiting(truth, client, tmp_path)
    before = {p.name: p.read_bytes() for p in (place / BUNDLE).iterdir()}
    waiting(truth, client, tmp_path)  # a run begun again finds the same bundle, byte for byte

    assert {p.name: p.read_bytes() for p in (place / BUNDLE).iterdir()} == before
    put(place, verdict_on(place))
    made = sample(truth, client, tmp_path, name)
    assert made.solved
    assert made.attempts[0].passed == ("answer", "includes", "launch", "build", "judge")
    assert made.verdict is not None
    assert made.verdict.where == "gpu"
    assert ("step by step" in client.asked[-1].messages[0].text) == (name == "cot")


@pytest.mark.cuda
def test_a_rejection_is_told_without_values_and_the_mended_kernel_waits_in_its_own_folder(
    truth: Truth, tmp_path: Path
) -> None:
    client = Answers(cuda(SOURCE.replace("sum > 0.0f ?", "true ?")), cuda(SOURCE))
    first = waiting(truth, client, tmp_path)
    put(first, verdict_on(first, accepted=False))
    second = waiting(truth, client, tmp_path)
    told = client.asked[-1].messages[-1].text

    assert first != second
    assert "Out[0, 1, 2, 3]: error 0.5, allowed 0.01" in told
    assert "writes outside of Out" in told
    assert "expected" not in told
    assert "```cuda" in told
    put(second, verdict_on(second))
    made = sample(truth, client, tmp_path)
    assert [a.failed for a in made.attempts] == ["judge", ""]
    assert made.attempts[0].codes == ("judge: rejected",)


@pytest.mark.cuda
def test_a_callable_judges_at_once(truth: Truth, tmp_path: Path) -> None:
    seen: list[Path] = []

    def judge(bundle: Path, against: Truth) -> Verdict:
        seen.append(bundle)
        assert against is truth
        return verdict_on(bundle.parent)

    where = OnGpu(tmp_path, judge)
    made = write_sample(
        WANTED, truth, Answers(cuda(SOURCE)), Results(*find_target("A100")), method("vanilla"), gpu=where
    )

    assert made.solved
    assert len(seen) == 1


@pytest.mark.cuda
@pytest.mark.parametrize(
    ("change", "says"),
    [({"digest": "0" * 64}, "is stale"), ({"where": "cpu"}, "of a CPU"), ({"verdict": "fine"}, "is no verdict")],
)
def test_a_verdict_on_something_else_is_refused_by_name(
    truth: Truth, tmp_path: Path, change: dict[str, str], says: str
) -> None:
    client = Answers(cuda(SOURCE))
    place = waiting(truth, client, tmp_path)
    (place / VERDICT).write_text(json.dumps(verdict_on(place).to_json() | change))

    with pytest.raises(BundleError, match=says) as fault:
        sample(truth, client, tmp_path)
    assert str(place / VERDICT) in fault.value.message


@pytest.mark.cuda
def test_a_verdict_still_being_written_and_a_changed_bundle_are_refused(truth: Truth, tmp_path: Path) -> None:
    client = Answers(cuda(SOURCE))
    place = waiting(truth, client, tmp_path)
    (place / VERDICT).write_text(json.dumps(verdict_on(place).to_json())[:40])
    with pytest.raises(BundleError, match="is no verdict"):
        sample(truth, client, tmp_path)
    (place / VERDICT).write_text("")  # a shell makes the file before the judge has said anything
    waiting(truth, client, tmp_path)
    (place / BUNDLE / "kernel.cu").write_text("other")
    with pytest.raises(BundleError, match="has changed"):
        sample(truth, client, tmp_path)


@pytest.mark.cuda
def test_the_bundle_says_how_it_is_launched_and_is_shown(truth: Truth, tmp_path: Path) -> None:
    place = waiting(truth, Answers(cuda(SOURCE)), tmp_path) / BUNDLE
    manifest = load(place).manifest

    assert manifest.kernel == "plain"
    assert (manifest.threads, manifest.shared_bytes) == (128, 0)
    assert [axis.stop for axis in manifest.grid] == [("ceildiv", "Sq", 128), "Hq", "B"]
    assert [(t.name, t.role, t.align) for t in manifest.tensors] == [
        ("Q", "input", 16), ("K", "input", 16), ("V", "input", 16), ("Out", "output", 16)
    ]  # fmt: skip
    assert (place / "kernel.cu").read_text() == SOURCE
    assert json.loads((place / "spec.json").read_text()) is None
    assert {p.name for p in place.iterdir()} == {
        "manifest.json", "spec.json", "report.json", "reasons.json", "kernel.cu", "kernel.cubin"
    }  # fmt: skip
    assert "plain for A100" in str(load(place))
    for options in ([], ["--json"], ["--html", str(tmp_path / "page.html")]):
        shown = CliRunner().invoke(app, ["show", str(place), *options])
        assert shown.exit_code == 0, shown.output


@pytest.mark.cuda
def test_the_digest_is_the_judges_and_a_description_reaches_the_bundle(tmp_path: Path) -> None:
    spec = AttentionSpec.make(name="plain", Hq=8, Hk=2, Dqk=64, outputs=["O"])
    place = waiting(Truth(spec=spec), Answers(cuda(SOURCE)), tmp_path) / BUNDLE
    manifest = read_folder(place).manifest
    with Process() as process:
        candidate = Isolated(manifest, spec, process, path=place)

    assert bundle_digest(manifest) == candidate.digest
    assert json.loads((place / "spec.json").read_text())["Hq"] == 8
    assert len(manifest.requires) == 2


# ------------------------------------------------------------------ what is refused
@pytest.mark.cuda
@pytest.mark.parametrize(
    ("change", "gate", "code", "told"),
    [
        (lambda s: s.replace("// launch", "// start"), "launch", "LM310", "// launch: threads=128"),
        (lambda s: s.replace("score *= scale;", "score *= skale;"), "build", "Q300", "plain.cu line 22"),
        (lambda s: s.replace("plain(", "other("), "build", "Q300", "exports no kernel named plain"),
        (lambda s: s.replace("out[64] = {};", "out[64] = {}; __shared__ float t[13000]; t[q & 1] = 0; out[1] = t[0];"),
         "build", "Q300", "uses too much shared data"),
        (lambda s: s.replace("score *= scale;", 'asm("mul.f32 %0, %0;" : "+f"(score));'), "build", "Q300", "mul"),
        (lambda s: s.replace("<cuda_bf16.h>", '"/etc/passwd"'), "includes", "LM311", "is not allowed"),
    ],
    ids=["launch line", "undeclared", "name", "static shared", "assembly", "include"],
)  # fmt: skip
def test_each_gate_refuses_and_says_where(
    truth: Truth, tmp_path: Path, change: Callable[[str], str], gate: str, code: str, told: str
) -> None:
    made = refused(truth, change(SOURCE), tmp_path)

    assert made.attempts[0].failed == gate
    assert made.attempts[0].codes == (code,)
    assert told in made.attempts[0].findings
    assert not list(tmp_path.iterdir())


@pytest.mark.cuda
def test_every_error_of_the_compiler_is_told_and_no_folder_of_this_machine(truth: Truth, tmp_path: Path) -> None:
    source = SOURCE.replace("score *= scale;", "score *= skale;").replace("sum += weight;", "sum =+ wait;")
    findings = refused(truth, source, tmp_path).attempts[0].findings

    assert "plain.cu line 22: score *= skale;" in findings
    assert "plain.cu line 25: sum =+ wait;" in findings
    assert str(EXAMPLES.parent) not in findings


@pytest.mark.cuda
def test_static_and_dynamic_shared_memory_are_counted_together(truth: Truth, tmp_path: Path) -> None:
    source = SOURCE.replace("shared_bytes=0", "shared_bytes=160000")
    source = source.replace("out[64] = {};", "out[64] = {}; __shared__ float t[9000]; t[q & 1] = 0; out[1] = t[0];")
    attempt = refused(truth, source, tmp_path).attempts[0]

    assert attempt.failed == "build"
    assert "160000 bytes of dynamic and 36000 of static" in attempt.findings


@pytest.mark.cuda
def test_a_source_that_compiles_forever_is_refused_and_told_so(
    truth: Truth, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    soon = partial(compile_apart, timeout_s=2.0)
    monkeypatch.setattr("qimeng_attention.build.compile_apart", soon)
    tree = (
        "template <int D, unsigned P> struct Tree { static constexpr unsigned value = "
        "Tree<D - 1, 2 * P>::value + Tree<D - 1, 2 * P + 1>::value; };\n"
        "template <unsigned P> struct Tree<0, P> { static constexpr unsigned value = P; };\n"
    )
    source = SOURCE.replace("// One thread", tree + "// One thread").replace(
        "score *= scale;", "score *= Tree<24, 1>::value;"
    )
    attempt = refused(truth, source, tmp_path).attempts[0]

    assert attempt.failed == "build"
    assert attempt.codes == ("Q300",)
    assert "was not done with plain.cu after 2 s" in attempt.findings
    assert "hint: nest templates less" in attempt.findings


def test_an_answer_fenced_as_tl_is_no_cuda(truth: Truth, tmp_path: Path) -> None:
    made = sample(truth, Answers("```tl\nKernel x for a100\n```"), tmp_path, repairs=0)

    assert made.attempts[0].failed == "answer"
    assert "```cuda" in made.attempts[0].findings


@pytest.mark.parametrize("field", ["varlen", "seqused_k"])
def test_descriptions_with_other_arguments_are_refused_by_name(tmp_path: Path, field: str) -> None:
    spec = AttentionSpec.make(name="plain", Hq=8, Hk=2, Dqk=64, **{field: True})

    with pytest.raises(SpecError, match=f"no arguments for {field}"):
        sample(Truth(spec=spec), Answers(""), tmp_path)


@pytest.mark.cuda
@pytest.mark.parametrize("target", ["T4", "A100", "H200"])
@pytest.mark.parametrize("header", [*ALLOWED, "cute/tensor.hpp"])
def test_every_header_that_the_prompt_promises_compiles(tmp_path: Path, header: str, target: str) -> None:
    if target == "T4" and "bf16" in header:
        pytest.skip("the T4 has no bf16")
    source = f'#include <{header}>\nextern "C" __global__ void k(float* o) {{ o[0] = 1; }}\n'
    found, arch = find_target(target)

    check_includes(source)
    built = build(source, name="k", arch=arch, threads=32, shared_bytes=0, target=found, cache=Cache.disabled())
    assert built.cubin


def test_a_method_that_writes_cuda_needs_a_place_for_verdicts(truth: Truth) -> None:
    with pytest.raises(SpecError, match="only a GPU can judge"):
        write_sample(WANTED, truth, Answers(""), Results(*find_target("A100")), method("cot"))
