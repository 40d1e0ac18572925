from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from qimeng_attention.errors import LaunchError
from qimeng_attention.runtime import GridAxis, Manifest, Requirement, Tensor
from qimeng_attention.runtime.plan import Plan, check_pointers, layout_of, make_plan

NAMES = ["q", "k", "v", "out", "lse"]


def plan_of(manifest: Manifest, *tensors: Any, sizes: dict[str, int] | None = None) -> Plan:
    layouts = [None if t is None else layout_of(t, name) for t, name in zip(tensors, NAMES, strict=True)]
    return make_plan(manifest, layouts, NAMES, sizes)


@pytest.fixture
def inputs(tensor: Callable[..., Any]) -> dict[str, Any]:
    return {"q": tensor(2, 300, 8, 64), "k": tensor(2, 70, 2, 64), "v": tensor(2, 70, 2, 64)}


def test_sizes_grid_and_arguments_follow_from_the_inputs(manifest: Manifest, inputs: dict[str, Any]) -> None:
    plan = plan_of(manifest, *inputs.values(), None, None)

    assert plan.sizes == (2, 300, 70)
    assert plan.grid == (3, 8, 2)
    assert plan.device == 0
    assert not plan.empty
    assert plan.values == (
        0,
        300 * 512,
        512,
        64,
        0,
        70 * 128,
        128,
        64,
        0,
        70 * 128,
        128,
        64,
        0,
        300 * 512,
        512,
        64,
        0,
        8 * 300,
        300,
        2,
        300,
        70,
        0.0,
    )
    assert plan.layouts[3][0] == (2, 300, 8, 64)
    assert plan.layouts[4][0] == (2, 8, 300)


def test_strides_of_the_tensors_are_arguments(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    packed = tensor(2, 70, 2, 64, strides=(70 * 512, 512, 128, 1))

    plan = plan_of(manifest, tensor(2, 300, 8, 64), packed, packed, None, None)

    assert plan.values[5:8] == (70 * 512, 512, 128)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"q": (2, 300, 8)}, r"q has 3 dimensions, expected \(B, Sq, 8, 64\)"),
        ({"q": (2, 300, 8, 128)}, "dimension 3 of q is 128, the kernel takes 64"),
        ({"q": (2, 8, 300, 64)}, "dimension 2 of q is 300, the kernel takes 8"),
        ({"k": (3, 70, 2, 64)}, r"B is 2 in q \(dimension 0\) but 3 in k \(dimension 0\)"),
        ({"v": (2, 71, 2, 64)}, r"Sk is 70 in k \(dimension 1\) but 71 in v \(dimension 1\)"),
        ({"k": (2, 70, 4, 64)}, "dimension 2 of k is 4, the kernel takes 2"),
    ],
)
def test_a_wrong_shape_is_named(
    manifest: Manifest, inputs: dict[str, Any], tensor: Callable[..., Any], change: dict[str, Any], words: str
) -> None:
    changed = {**inputs, **{name: tensor(*shape) for name, shape in change.items()}}

    with pytest.raises(LaunchError, match=words):
        plan_of(manifest, *changed.values(), None, None)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dtype": "torch.float16"}, r"k is of torch\.float16, the kernel takes torch\.bfloat16"),
        ({"device": "cpu"}, "k is on cpu, not on a CUDA device"),
        ({"device": "meta"}, "k is on meta"),
        ({"device": "cuda:1"}, "k is on cuda:1, q on cuda:0"),
        ({"strides": (70 * 128, 128, 1, 2)}, "the last stride of k is 2, not 1"),
        (
            {"strides": (70 * 132, 132, 64, 1)},
            "stride 0 of k is 9240 elements.* multiples of 8|stride 1 of k",
        ),
        ({"strides": (70 * 128, -128, 64, 1)}, "stride 1 of k is -128"),
        (
            {"strides": (70 * 136, 136, 68, 1)},
            "stride 2 of k is 68 elements, and the kernel takes multiples of 8",
        ),
    ],
)
def test_a_tensor_the_kernel_cannot_read_is_named(
    manifest: Manifest, inputs: dict[str, Any], tensor: Callable[..., Any], more: dict[str, Any], words: str
) -> None:
    inputs["k"] = tensor(2, 70, 2, 64, **more)

    with pytest.raises(LaunchError, match=words) as caught:
        plan_of(manifest, *inputs.values(), None, None)

    assert caught.value.details["argument"] == "k"
    assert caught.value.hint


def test_strides_of_dimensions_of_one_do_not_matter(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    q = tensor(1, 300, 8, 64, strides=(3, 512, 64, 1))
    k = tensor(1, 1, 2, 64, strides=(1, 5, 64, 1))

    assert plan_of(manifest, q, k, k, None, None).sizes == (1, 300, 1)


def test_an_expanded_input_is_taken_and_an_expanded_output_is_not(
    manifest: Manifest, inputs: dict[str, Any], tensor: Callable[..., Any]
) -> None:
    inputs["k"] = tensor(2, 70, 2, 64, strides=(0, 128, 64, 1))
    out = tensor(2, 300, 8, 64, strides=(0, 512, 64, 1))

    assert plan_of(manifest, *inputs.values(), None, None).values[5] == 0
    with pytest.raises(LaunchError, match="elements of out share memory"):
        plan_of(manifest, *inputs.values(), out, None)


@pytest.mark.parametrize("value", [None, 3, [1, 2], "q"])
def test_what_is_no_tensor_is_named(value: object) -> None:
    with pytest.raises(LaunchError, match=r"q is a .*, no tensor"):
        layout_of(value, "q")  # type: ignore[arg-type]


def test_given_outputs_are_checked_like_inputs(
    manifest: Manifest, inputs: dict[str, Any], tensor: Callable[..., Any]
) -> None:
    with pytest.raises(LaunchError, match=r"Sq is 300 in q \(dimension 1\) but 299 in out"):
        plan_of(manifest, *inputs.values(), tensor(2, 299, 8, 64), None)
    with pytest.raises(LaunchError, match=r"lse is of torch\.bfloat16"):
        plan_of(manifest, *inputs.values(), None, tensor(2, 8, 300))


def test_inputs_name_sizes_first_wherever_the_outputs_stand(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    moved = replace(manifest, tensors=(manifest.tensors[3], *manifest.tensors[:3], manifest.tensors[4]))
    out, q, k = tensor(1, 9, 8, 64), tensor(1, 10, 8, 64), tensor(1, 5, 2, 64)
    labels = ["out", "q", "k", "v", "lse"]

    with pytest.raises(LaunchError, match=r"Sq is 10 in q \(dimension 1\) but 9 in out"):
        make_plan(moved, [*(layout_of(t, "t") for t in (out, q, k, k)), None], labels)


def test_given_sizes_must_be_the_tensors(manifest: Manifest, inputs: dict[str, Any]) -> None:
    with pytest.raises(LaunchError, match="dimension 1 of q is 300, the kernel takes Sq = 301"):
        plan_of(manifest, *inputs.values(), None, None, sizes={"B": 2, "Sq": 301, "Sk": 70})


def test_a_size_over_int32_is_refused(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    k = tensor(1, 2**31, 2, 64)

    with pytest.raises(LaunchError, match="Sk = 2147483648 in k is over 2147483647"):
        plan_of(manifest, tensor(1, 1, 8, 64), k, k, None, None)


def test_a_requirement_between_sizes_is_checked(manifest: Manifest, inputs: dict[str, Any]) -> None:
    asked = replace(manifest, requires=(Requirement(("%", "Sq", 128), "==", 0),))

    with pytest.raises(LaunchError, match=r"needs Sq % 128 == 0, which B = 2, Sq = 300, Sk = 70 does not"):
        plan_of(asked, *inputs.values(), None, None)


def test_a_division_by_a_zero_size_is_a_launch_error(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    asked = replace(manifest, requires=(Requirement(("%", "Sq", "Sk"), "==", 0),))
    empty = tensor(1, 0, 2, 64)

    with pytest.raises(LaunchError, match="divides by zero"):
        plan_of(asked, tensor(1, 4, 8, 64), empty, empty, None, None)


def test_a_grid_over_the_limit_is_refused(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    q, k = tensor(65_536, 1, 8, 64), tensor(65_536, 1, 2, 64)

    with pytest.raises(LaunchError, match="batch needs a grid of 65536 blocks along z, GPUs take 65535"):
        plan_of(manifest, q, k, k, None, None)


@pytest.mark.parametrize(("batch", "seqlen_q"), [(0, 5), (2, 0)])
def test_outputs_without_elements_need_no_launch(
    manifest: Manifest, tensor: Callable[..., Any], batch: int, seqlen_q: int
) -> None:
    q, k = tensor(batch, seqlen_q, 8, 64), tensor(batch, 7, 2, 64)

    plan = plan_of(manifest, q, k, k, None, None)

    assert plan.empty
    assert plan.layouts[3][0] == (batch, seqlen_q, 8, 64)


def test_without_keys_the_kernel_still_runs(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    k = tensor(2, 0, 2, 64, pointer=0)

    plan = plan_of(manifest, tensor(2, 300, 8, 64), k, k, None, None)

    assert not plan.empty
    assert plan.grid == (3, 8, 2)


def test_a_grid_that_leaves_outputs_unwritten_is_refused(manifest: Manifest, tensor: Callable[..., Any]) -> None:
    wrong = replace(manifest, grid=(GridAxis("block", 0, ("ceildiv", "Sk", 64)),))
    k = tensor(2, 0, 2, 64)

    with pytest.raises(LaunchError, match="no blocks, but there are outputs"):
        plan_of(wrong, tensor(2, 300, 8, 64), k, k, None, None)


# ------------------------------------------------------------------------------------------ addresses
def check(manifest: Manifest, *tensors: Any) -> None:
    plan = plan_of(manifest, *tensors)
    check_pointers(manifest, plan, [tensor.data_ptr() for tensor in tensors], NAMES)


@pytest.fixture
def whole(tensor: Callable[..., Any]) -> dict[str, Any]:
    shapes = {
        "q": (2, 300, 8, 64),
        "k": (2, 70, 2, 64),
        "v": (2, 70, 2, 64),
        "out": (2, 300, 8, 64),
        "lse": (2, 8, 300),
    }
    made = {
        name: tensor(*shape, pointer=0x1000_0000 * (index + 1)) for index, (name, shape) in enumerate(shapes.items())
    }
    made["lse"].dtype = "torch.float32"
    return made


def test_tensors_apart_pass(manifest: Manifest, whole: dict[str, Any]) -> None:
    check(manifest, *whole.values())


@pytest.mark.parametrize(("name", "offset"), [("q", 2), ("v", 8), ("out", 4), ("lse", 2)])
def test_an_address_off_its_alignment_is_refused(
    manifest: Manifest, whole: dict[str, Any], name: str, offset: int
) -> None:
    whole[name].pointer += offset

    with pytest.raises(LaunchError, match=f"{name} starts at an address that is no multiple of"):
        check(manifest, *whole.values())


def test_lse_needs_the_alignment_of_its_items_alone(manifest: Manifest, whole: dict[str, Any]) -> None:
    whole["lse"].pointer += 4

    check(manifest, *whole.values())


def test_an_empty_tensor_may_lie_anywhere(
    manifest: Manifest, whole: dict[str, Any], tensor: Callable[..., Any]
) -> None:
    whole["k"] = whole["v"] = tensor(2, 0, 2, 64, pointer=0x1002)

    check(manifest, *whole.values())


@pytest.mark.parametrize(("name", "offset"), [("q", 0), ("k", 0), ("q", 512), ("q", 299 * 1024), ("lse", 16)])
def test_an_output_that_shares_memory_is_refused(
    manifest: Manifest, whole: dict[str, Any], name: str, offset: int
) -> None:
    whole["out"].pointer = whole[name].pointer + offset

    with pytest.raises(LaunchError, match=f"out shares memory with {name}"):
        check(manifest, *whole.values())


def test_an_output_inside_the_packed_inputs_tensor_passes(
    manifest: Manifest, whole: dict[str, Any], tensor: Callable[..., Any]
) -> None:
    strides = (300 * 1024, 1024, 64, 1)
    whole["q"] = tensor(2, 300, 8, 64, strides=strides, pointer=0x10000)
    whole["out"] = tensor(2, 300, 8, 64, strides=strides, pointer=0x10000 + 512 * 2)

    check(manifest, *whole.values())


def test_a_tensor_without_memory_is_refused(manifest: Manifest, whole: dict[str, Any]) -> None:
    whole["v"].pointer = 0

    with pytest.raises(LaunchError, match="v has no memory"):
        check(manifest, *whole.values())


def test_fixed_alignment_of_a_manifest_holds(manifest: Manifest, whole: dict[str, Any]) -> None:
    loose = replace(
        manifest, tensors=(Tensor("Q", "bf16", ("B", "Sq", 8, 64), "input", align=2), *manifest.tensors[1:])
    )
    whole["q"].pointer += 2

    check(loose, *whole.values())
