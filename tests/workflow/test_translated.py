"""A model that translates its own TL: the gates of both languages, and repairs that are counted together."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from qimeng_attention.author.llm import render
from qimeng_attention.author.llm.includes import check_includes
from qimeng_attention.author.llm.methods import method
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.build import Cache, build
from qimeng_attention.judge import Check, Verdict, open_reference
from qimeng_attention.judge.reference_process import Reference
from qimeng_attention.llm.chat import Reply, Request, Waiting
from qimeng_attention.runtime import read_folder
from qimeng_attention.workflow.authoring import Sample, Truth, write_sample
from qimeng_attention.workflow.gpu import BUNDLE, VERDICT, OnGpu, bundle_digest
from qimeng_attention.workflow.stages import Results, find_target

EXAMPLES = Path(__file__).parents[2] / "examples"
WANTED = Wanted("Causal attention whose weights are max(score, 0)^2 divided by their sum.", "kernel", (64, 64), "bf16")
TL = (EXAMPLES / "squared_relu.tl").read_text().replace("squared_relu", "kernel").replace("D = 128", "D = 64")
CUDA = (Path(__file__).parent / "plain.cu").read_text().replace("plain(", "kernel(")
ATOMS = "using Mma = MMA_Atom<SM80_16x8x16_F32BF16BF16F32_TN>;"


class Answers:
    """A client that gives the same answers each time, in the order of the conversations' turns."""

    name = "answers"

    def __init__(self, *texts: str) -> None:
        self.texts, self.said, self.asked = texts, dict[str, str](), list[Request]()

    def complete(self, request: Request) -> Reply:
        self.asked.append(request)
        if request.digest not in self.said:
            self.said[request.digest] = self.texts[len(self.said)]
        return Reply(self.said[request.digest], "answers")


@pytest.fixture(scope="module")
def truth() -> Iterator[Truth]:
    with open_reference(f"{EXAMPLES / 'squared_relu.py'}:attention") as function:
        assert isinstance(function, Reference)
        yield Truth(function=function)


def tl(program: str = TL) -> str:
    return f"Some words.\n```tl\n{program}```\n"


def cuda(source: str = CUDA) -> str:
    return f"Some words.\n```cuda\n{source}```\n"


SKETCH = tl("Copy Q from global to shared\n")
CHOICE = f"The atoms.\n```cpp\n{ATOMS}\n```\n"


def sample(truth: Truth, client: Answers, folder: Path, repairs: int = 3) -> Sample:
    results = Results(*find_target("A100"))
    return write_sample(WANTED, truth, client, results, method("translated"), repairs=repairs, gpu=OnGpu(folder))


def waiting(truth: Truth, client: Answers, folder: Path) -> Path:
    """Run up to the bundle that waits, and give its folder."""
    with pytest.raises(Waiting, match="has not been judged on a GPU yet") as fault:
        sample(truth, client, folder)
    return Path(fault.value.details["folder"])


def put(place: Path, accepted: bool = True) -> None:
    wrong = Check(case="normal, Sq=3", output="Out", passed=False, worst_error=0.5, bound=0.01, mean_error=0.1,
                  mean_bound=0.01, reason="Out[0, 1, 2, 3] is 0.75, expected 0.25")  # fmt: skip
    verdict = Verdict(
        verdict="accepted" if accepted else "rejected",
        reason="as it is",
        subject="kernel",
        where="gpu",
        digest=bundle_digest(read_folder(place / BUNDLE).manifest),
        entropy=1,
        seed=1,
        checks=() if accepted else (wrong,),
    )
    (place / VERDICT).write_text(json.dumps(verdict.to_json()))


@pytest.mark.cuda
def test_a_sample_goes_from_a_sketch_to_a_verdict_in_four_calls(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, tl(), CHOICE, cuda())
    put(waiting(truth, client, tmp_path))
    made = sample(truth, client, tmp_path)

    assert made.solved
    assert made.repairs == 0
    assert len(client.said) == 4
    assert [a.stage for a in made.attempts] == ["code", "translation"]
    assert [a.language for a in made.attempts] == ["TL", "CUDA"]
    assert made.attempts[0].passed == ("answer", "parse", "check", "interpret")
    assert made.attempts[1].passed == ("answer", "includes", "launch", "build", "judge")
    assert [r.stage for r in client.asked[-4:]] == ["sketch", "code", "atoms", "translation"]
    assert all(len(r.messages) == 1 for r in client.asked)
    assert made.results is not None
    assert made.results.handwritten
    assert made.results.code == ""


@pytest.mark.cuda
def test_what_the_model_chose_and_wrote_is_what_it_translates(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, tl(), CHOICE, cuda())
    waiting(truth, client, tmp_path)
    atoms, translation = (r.messages[0].text for r in client.asked[2:4])

    for text in (atoms, translation):
        assert f"```tl\n{TL.strip()}\n```" in text
        assert "SM80_16x8x16_F32BF16BF16F32_TN" in text
    assert f"```cuda\n{ATOMS}\n```" in translation
    assert 'extern "C" __global__ void kernel(' in translation
    assert "einsum" not in translation


@pytest.mark.cuda
def test_tl_is_mended_before_it_is_translated_and_repairs_of_both_languages_count_together(
    truth: Truth, tmp_path: Path
) -> None:
    client = Answers(
        SKETCH,
        tl(TL.replace("K.T", "K")),
        tl(TL.replace("S * S", "S * S * S")),
        tl(),
        CHOICE,
        cuda(CUDA.replace("score *= scale;", "score *= skale;")),
        cuda(),
    )
    place = waiting(truth, client, tmp_path)
    put(place, accepted=False)
    made = sample(truth, client, tmp_path)

    assert [a.stage for a in made.attempts] == ["code", "repair 1", "repair 2", "translation", "repair 3"]
    assert [a.failed for a in made.attempts] == ["check", "interpret", "", "build", "judge"]
    assert not made.solved
    assert made.repairs == 3
    told = {r.stage: r.messages[-1].text for r in client.asked}
    assert "TL202" in told["repair 1"]
    assert "what it computes is not what was asked for" in told["repair 2"]
    assert "```tl" in told["repair 2"]
    assert "skale" in told["repair 3"]
    assert "```cuda" in told["repair 3"]


@pytest.mark.cuda
def test_a_rejection_on_the_gpu_is_mended_in_the_translation(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, tl(), CHOICE, cuda(CUDA.replace("sum > 0.0f ?", "true ?")), cuda())
    first = waiting(truth, client, tmp_path)
    put(first, accepted=False)
    second = waiting(truth, client, tmp_path)
    told = client.asked[-1].messages

    assert first != second
    assert len(told) == 3
    assert "Out[0, 1, 2, 3]: error 0.5, allowed 0.01" in told[-1].text
    assert "expected" not in told[-1].text
    put(second)
    made = sample(truth, client, tmp_path)
    assert made.solved
    assert [a.failed for a in made.attempts] == ["", "judge", ""]


def test_tl_that_never_passes_is_not_translated(truth: Truth, tmp_path: Path) -> None:
    client = Answers(SKETCH, "nothing", "nothing again")
    made = sample(truth, client, tmp_path, repairs=1)

    assert not made.solved
    assert [r.stage for r in client.asked] == ["sketch", "code", "repair 1"]
    assert [a.failed for a in made.attempts] == ["answer", "answer"]
    assert not list(tmp_path.iterdir())


def test_a_run_begun_again_tells_the_model_the_same_words(truth: Truth, tmp_path: Path) -> None:
    wrong = tl(TL.replace("S * S", "S * S * S"))
    first, second = (Answers(SKETCH, wrong, "stop") for _ in range(2))
    for client in (first, second):
        sample(truth, client, tmp_path, repairs=1)

    assert first.asked[-1].digest == second.asked[-1].digest


# One product of a tile, by the names that the prompts say: it computes nothing that anybody asked for.
NAMES = """
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cute/tensor.hpp>
using namespace cute;
using T = {type};
using Mma = MMA_Atom<{mma}>;
using Read = Copy_Atom<SM75_U32x4_LDSM_N, T>;
using Turned = Copy_Atom<SM75_U16x8_LDSM_T, T>;
using Load = Copy_Atom<{load}, T>;
extern "C" __global__ void k(const {given}* K, float* O, int Sk) {{
    extern __shared__ char memory[];
    auto given = make_gmem_ptr(reinterpret_cast<const T*>(K));
    Tensor gK = make_tensor(given, make_shape(Int<64>{{}}, Int<64>{{}}), GenRowMajor{{}});
    auto rows = composition(Swizzle<3, 3, 3>{{}}, Layout<Shape<_64, _64>, Stride<_64, _1>>{{}});
    Tensor sK = make_tensor(make_smem_ptr(reinterpret_cast<T*>(memory)), rows);
    Tensor sKt = make_tensor(sK.data(), composition(rows, Layout<Shape<_64, _64>, Stride<_64, _1>>{{}}));
    auto loads = make_tiled_copy(Load{{}}, Layout<Shape<_16, _8>, Stride<_8, _1>>{{}}, Layout<Shape<_1, _8>>{{}});
    auto load = loads.get_slice(threadIdx.x);
    copy(loads, load.partition_S(gK), load.partition_D(sK));
    {wait}
    __syncthreads();
    auto tiled = make_tiled_mma(Mma{{}}, Layout<Shape<_4, _1, _1>>{{}}, Tile<_64, _16, _16>{{}});
    auto mma = tiled.get_slice(threadIdx.x);
    Tensor acc = partition_fragment_C(tiled, Shape<_64, _64>{{}});
    Tensor where = mma.partition_C(make_identity_tensor(Shape<_64, _64>{{}}));
    clear(acc);
    Tensor rA = mma.partition_fragment_A(sK);
    Tensor rB = mma.partition_fragment_B(sK);
    auto a = make_tiled_copy_A(Read{{}}, tiled).get_slice(threadIdx.x);
    auto b = make_tiled_copy_B(Read{{}}, tiled).get_slice(threadIdx.x);
    auto t = make_tiled_copy_B(Turned{{}}, tiled).get_slice(threadIdx.x);
    copy(make_tiled_copy_A(Read{{}}, tiled), a.partition_S(sK), a.retile_D(rA));
    copy(make_tiled_copy_B(Read{{}}, tiled), b.partition_S(sK), b.retile_D(rB));
    for (int n = 0; n < size<2>(rA); ++n) gemm(tiled, rA(_, _, n), rB(_, _, n), acc);
    copy(make_tiled_copy_B(Turned{{}}, tiled), t.partition_S(sKt), t.retile_D(rB));
    for (int n = 0; n < size<2>(rA); ++n) gemm(tiled, rA(_, _, n), rB(_, _, n), acc);
    float most = 0.0f;
    for (int v = 0; v < size(acc); ++v) most = fmaxf(most, get<1>(where(v)) < Sk ? acc(v) : 0.0f);
    most = fmaxf(most, __shfl_xor_sync(0xffffffff, most, 1));
    O[threadIdx.x] = most;
}}
"""
ON = {
    "A100": {
        "type": "bfloat16_t",
        "given": "__nv_bfloat16",
        "mma": "SM80_16x8x16_F32BF16BF16F32_TN",
        "load": "SM80_CP_ASYNC_CACHEGLOBAL_ZFILL<uint128_t>",
        "wait": "cp_async_fence(); cp_async_wait<0>();",
    },
    "T4": {
        "type": "half_t",
        "given": "__half",
        "mma": "SM75_16x8x8_F32F16F16F32_TN",
        "load": "UniversalCopy<uint128_t>",
        "wait": "",
    },
}


@pytest.mark.cuda
@pytest.mark.parametrize("name", ON)
def test_the_names_in_the_prompts_are_those_of_cute(name: str) -> None:
    target, arch = find_target(name)
    source = NAMES.format(**ON[name])
    prompt = render.atoms_prompt(WANTED if name == "A100" else replace(WANTED, dtype="fp16"), target, arch, TL)
    for atom in (ON[name]["mma"], "SM75_U32x4_LDSM_N", "SM75_U16x8_LDSM_T"):
        assert f"`{atom}`" in prompt

    check_includes(source)
    built = build(source, name="k", arch=arch, threads=128, shared_bytes=16384, target=target, cache=Cache.disabled())
    assert built.report.registers
