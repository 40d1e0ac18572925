"""The gates of an answer in CUDA: the text, its includes, its launch line, NVRTC, and the judge on a GPU.

Nothing is added to what the model wrote. Its kernel takes the launcher's arguments like every other one, and has a
bundle, without any TL in it.

Not here: the gates of TL (authoring.py), who judges on a GPU (gpu.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from qimeng_attention.author.llm.answers import program_of
from qimeng_attention.author.llm.includes import check_includes
from qimeng_attention.author.llm.launch import BadLaunch, facts_of, launch_of
from qimeng_attention.author.llm.wanted import Wanted
from qimeng_attention.build import Cache
from qimeng_attention.errors import BuildError, SpecError
from qimeng_attention.spec import AttentionSpec
from qimeng_attention.workflow.attempts import Attempt, Gate, Truth, pass_gates
from qimeng_attention.workflow.gpu import OnGpu, judged
from qimeng_attention.workflow.stages import Handwritten, Results, to_cubin

GATES = ("answer", "includes", "launch", "build", "judge")
FENCE = "cuda"


def refuse_other_arguments(spec: AttentionSpec | None) -> None:
    """Refuse a description whose calls give more than the signature has.

    Raises:
        SpecError: packed sequences, or caches with lengths of their own.
    """
    for field in ("varlen", "seqused_k"):
        if spec is not None and getattr(spec, field):
            raise SpecError(
                f"a method that writes CUDA has no arguments for {field}",
                hint="leave it out, or take the method two-stage",
                field=field,
                value=True,
            )


def try_cuda(
    text: str, wanted: Wanted, results: Results, truth: Truth, stage: str, where: OnGpu, cache: Cache | None = None
) -> tuple[Attempt, Results]:
    """Pass an answer through every gate, up to the first that refuses it.

    Raises:
        Waiting: the kernel waits for a GPU.
        BundleError: what lies beside it is no verdict on it.
        EnvironmentMissing: this machine cannot compile.
    """
    return pass_gates(_gates(text, wanted, truth, where, cache), stage, replace(results, spec=truth.spec), "CUDA")


def _gates(text: str, wanted: Wanted, truth: Truth, where: OnGpu, cache: Cache | None) -> Mapping[str, Gate]:
    def answer(attempt: Attempt, results: Results) -> tuple[Attempt, Results]:
        return replace(attempt, program=program_of(text, FENCE)), results

    def includes(attempt: Attempt, results: Results) -> tuple[Attempt, Results]:
        check_includes(attempt.program)
        return attempt, results

    def launch(attempt: Attempt, results: Results) -> tuple[Attempt, Results]:
        said = launch_of(attempt.program, wanted, results.target)
        facts = facts_of(wanted, said)
        kernel = Handwritten(wanted.name, attempt.program, said.threads, said.shared_bytes, facts)
        return attempt, replace(results, translations=(kernel,), reasons={"author": "llm", "reasons": []})

    def build(attempt: Attempt, results: Results) -> tuple[Attempt, Results]:
        built = to_cubin(results, cache)
        _require_room(built)
        return attempt, built

    def judge(attempt: Attempt, results: Results) -> tuple[Attempt, Results]:
        return attempt, judged(results, truth, where)

    return dict(zip(GATES, (answer, includes, launch, build, judge), strict=True))


def _require_room(results: Results) -> None:
    """Refuse a kernel of which not one block fits a multiprocessor: no launch of it succeeds."""
    built, kernel, target = results.builds[0], results.translations[0], results.target
    static = built.report.shared_static_bytes or 0
    if static + kernel.shared_bytes > target.shared_per_block_bytes:
        raise BadLaunch(
            f"a block asks for {kernel.shared_bytes} bytes of dynamic and {static} of static shared memory",
            hint=f"{target.name} has {target.shared_per_block_bytes} bytes a block for both",
        )
    occupancy = built.report.occupancy
    if occupancy is not None and occupancy.blocks_per_sm < 1:
        raise BuildError(
            f"no block fits a multiprocessor: {kernel.threads} threads of {built.report.registers} registers",
            hint=f"write __launch_bounds__({kernel.threads}) before the name, or take fewer threads",
        )
