"""The requests of the study: their references compute, and what is called unseen stands nowhere else."""

from __future__ import annotations

import importlib.util
import inspect
import re
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from qimeng_attention.errors import SpecError
from qimeng_attention.study.requests import StudyRequest, load_request, load_requests

ROOT = Path(__file__).parents[2]
REQUESTS = load_requests(ROOT / "benchmarks" / "study" / "requests")
UNSEEN = [r for r in REQUESTS if r.stratum == "unseen"]
WRITTEN = ("src", "docs", "examples", "tests", "benchmarks")
# what was said in a trial, and what tells of it
TOLD = ("transcripts", "study", "study_round1", "study_kernels", "study_kernels_h200", "study_kernels_round2_h200")
TEXTS = (".py", ".tl", ".md", ".yaml", ".txt", ".jinja", ".j2", ".json")


def module(request: StudyRequest) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"reference_{request.name}", request.folder / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def inputs(request: StudyRequest, sq: int, sk: int) -> dict[str, object]:
    random = np.random.default_rng(7)
    sizes = {"B": 2, "Sq": sq, "Sk": sk, "Hq": 4, "Hk": 2 if request.heads["Hq"] > request.heads["Hk"] else 4}
    dqk, dv = request.head_dims["Dqk"], request.head_dims["Dv"]
    shapes = {
        "Q": (2, sq, 4, dqk), "K": (2, sk, sizes["Hk"], dqk), "V": (2, sk, sizes["Hk"], dv),
        **{n: tuple(sizes[d] for d in t.dims) for n, t in request.tensors.items()},
    }  # fmt: skip
    return {n: random.standard_normal(shape) for n, shape in shapes.items()} | {"scale": 0.1}


def called(request: StudyRequest, given: dict[str, object]) -> dict[str, np.ndarray]:
    function = module(request).attention
    assert set(inspect.signature(function).parameters) == set(given)
    return dict(function(**given))


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.name)
@pytest.mark.parametrize(("sq", "sk"), [(1, 1), (5, 9), (9, 5), (150, 140)])
def test_a_reference_gives_finite_float64_of_the_right_shape(request_: StudyRequest, sq: int, sk: int) -> None:
    given = inputs(request_, sq, sk)
    before = {n: np.copy(a) for n, a in given.items()}

    found = called(request_, given)
    again = called(request_, given)

    names = {"Out", "Out_magnitude", *(["Lse"] if "LSE" in request_.outputs else [])}
    assert set(found) == names
    for name, array in found.items():
        shape = (2, 4, sq) if name == "Lse" else (2, sq, 4, request_.head_dims["Dv"])
        assert (array.dtype, array.shape) == (np.dtype(np.float64), shape)
        assert np.array_equal(array, again[name])
        assert np.isfinite(array).all() or (
            name == "Lse" and not np.isnan(array).any() and not np.isposinf(array).any()
        )
    assert (np.abs(found["Out"]) <= found["Out_magnitude"] * (1 + 1e-9) + 1e-12).all()
    assert all(np.array_equal(before[n], given[n]) for n in given)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.name)
def test_a_row_without_a_key_gives_0_and_every_input_matters(request_: StudyRequest) -> None:
    given = inputs(request_, 9, 5)  # the first four rows see nothing where the mask is causal
    found = called(request_, given)

    if "q + Sk - Sq" in request_.words and "first 96" not in request_.words:
        assert not found["Out"][:, :4].any()
        assert found["Out"][:, 5:].any()
    for name in set(given) - {"scale"}:
        other = np.random.default_rng(8).permutation(np.asarray(given[name]).ravel()).reshape(np.shape(given[name]))
        assert not np.allclose(called(request_, {**given, name: other})["Out"], found["Out"])


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.name)
def test_nothing_is_rounded_on_the_way(request_: StudyRequest) -> None:
    given = inputs(request_, 9, 9)
    found = called(request_, given)

    for name in given:  # a change that float32 cannot hold
        other = called(request_, {**given, name: np.asarray(given[name]) * (1 + 2.0**-40)})
        assert not np.array_equal(other["Out"], found["Out"]), name


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.name)
def test_large_scores_of_either_sign_do_not_overflow(request_: StudyRequest) -> None:
    for factor in (300.0, -300.0):
        given = inputs(request_, 9, 9)
        given["Q"] = np.asarray(given["Q"]) * factor
        assert np.isfinite(called(request_, given)["Out"]).all()


def normal(text: str) -> str:
    return " ".join(re.sub(r"[^a-z0-9]+", " ", text.lower()).split())


def told(path: Path) -> bool:
    return any(part.removesuffix(path.suffix) in TOLD for part in path.relative_to(ROOT).parts)


@pytest.fixture(scope="module")
def written() -> dict[str, str]:
    """Give every text of the product, its documents, examples, tests and benchmarks."""
    paths = [p for folder in WRITTEN for p in sorted((ROOT / folder).rglob("*")) if p.suffix in TEXTS and not told(p)]
    return {str(p.relative_to(ROOT)): normal(p.read_text("utf-8")) for p in [*paths, ROOT / "README.md"]}


@pytest.mark.parametrize("request_", UNSEEN, ids=lambda r: r.name)
def test_what_is_unseen_is_named_nowhere_else(request_: StudyRequest, written: dict[str, str]) -> None:
    assert len(written) > 150
    assert len(request_.phrases) >= 2
    assert any(
        normal(p) in normal(request_.words) or normal(p) in normal(module(request_).__doc__ or "")
        for p in request_.phrases
    )
    for phrase in [request_.name.replace("_", " "), *request_.phrases]:
        assert [name for name, text in written.items() if normal(phrase) in text] == [], phrase


def test_the_rounds_are_large_enough_and_ask_for_more_than_masks() -> None:
    known = [r for r in REQUESTS if r.stratum == "known"]
    first, second = ([r for r in UNSEEN if r.round == n] for n in (1, 2))

    assert (len(known), len(first), len(second)) == (8, 8, 12)
    for some in (first, second):
        assert sum(r.new not in ("mask", "score") for r in some) >= len(some) / 2
    assert {r.target for r in UNSEEN} == {"A100", "L40S", "T4"}
    assert all(r.dtype == "fp16" for r in REQUESTS if r.target == "T4")


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.name)
def test_the_words_say_what_the_fields_say(request_: StudyRequest) -> None:
    words = request_.words

    assert request_.target in words
    assert request_.dtype in words
    assert all(re.search(rf"\b{n}\b", words) for n in {*request_.heads.values(), *request_.head_dims.values()})
    assert ("LSE" in words) == ("LSE" in request_.outputs)
    assert ("utput only" in words) == ("LSE" not in request_.outputs)
    assert all(name in words for name in request_.tensors)
    assert len(re.findall(r"[.?!](?:\s|$)", words)) <= 7


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda r: r.name)
def test_the_declarations_name_what_the_reference_asks_for(request_: StudyRequest) -> None:
    declared = "\n".join(request_.declarations())

    for name in inspect.signature(module(request_).attention).parameters:
        assert re.search(rf"^(?:Allocate|Scalar) {name} ", declared, re.MULTILINE)


def test_a_broken_request_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="no such request"):
        load_requests(tmp_path)
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "request.yaml").write_text("name: one\n")
    with pytest.raises(SpecError, match="no request"):
        load_request(tmp_path / "one")
