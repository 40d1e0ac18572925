"""The tools: what each takes, in words for an agent, and which work it asks for.

A tool that asks for a stage answers at once where the stage is quick; where it is not, after WAIT_S, it answers with a
job to poll. Tools whose stages take long are pairs: `start_judge`, then `poll`.

Not here: what a stage does (work.py), which of them there are to a client (server.py).
"""

from __future__ import annotations

import time
from typing import Annotated, Any, Literal

import anyio
import anyio.to_thread
from pydantic import Field

from qimeng_attention import targets
from qimeng_attention.errors import SpecError
from qimeng_attention.integrations.mcp import reference as language
from qimeng_attention.integrations.mcp.answers import success
from qimeng_attention.integrations.mcp.jobs import Job, Jobs
from qimeng_attention.integrations.mcp.root import Root
from qimeng_attention.spec import AttentionSpec

WAIT_S = 20.0  # that a quick stage is waited for; then its call answers with a job
MOST_POLL_S = 20.0  # that a poll may wait: clients give a call 30 seconds or more
_LOOK_S = 0.05
Answer = dict[str, Any]
Stage = Literal["sketch", "code", "scheduled", "cute", "cubin", "verdict", "bundle"]

_FIELDS = "; ".join(f"{n}: {f.description}" for n, f in AttentionSpec.model_fields.items())
Program = Annotated[str, Field(description="A TL program, as text.")]
Target = Annotated[str, Field(description="A GPU's name, see `targets`; empty: the one that the program names.")]
Spec = Annotated[dict[str, Any], Field(description=f"A description of an attention operator. Fields: {_FIELDS}.")]
MaybeSpec = Annotated[
    dict[str, Any] | None, Field(description="A description of an attention operator, as `understand` takes it.")
]
Arch = Annotated[str, Field(description="Build for another architecture, as sm_90; empty: the target's own.")]
Bundle = Annotated[str, Field(description="A bundle's folder, below the server's folder.")]
Reference = Annotated[
    str, Field(description="FILE.py:FUNCTION below the server's folder; only where the server may run references.")
]
Framework = Annotated[str, Field(description="What the reference takes: numpy, torch or auto.")]
JobName = Annotated[str, Field(description="A job's name, as a start tool gave it.")]


class Tools:
    """Every tool of a server."""

    def __init__(self, root: Root, jobs: Jobs) -> None:
        self._root, self._jobs = root, jobs

    # -------------------------------------------------------------- knowing
    async def statements(
        self,
        name: Annotated[
            str, Field(description="A statement, function, constant, schedule choice or macro; empty lists all.")
        ] = "",
    ) -> Answer:
        """Document the language TL from its own tables: form, meaning, level and example of a statement, a function, a
        schedule choice or a macro. Without a name: the rules, and one line for each."""
        return success(language.entry(name) if name else language.overview())

    async def targets(self) -> Answer:
        """List the GPUs that can be named, with what each can do."""
        found = [targets.get(name) for name in targets.names()]
        return success(
            {
                "targets": [
                    {
                        "name": t.name,
                        "arch": t.arch,
                        "sms": t.sms,
                        "shared_per_block": t.shared_per_block_bytes,
                        "dtypes": t.dtypes,
                        "capabilities": sorted(t.capabilities),
                    }
                    for t in found
                ]
            }
        )

    async def understand(self, spec: Spec) -> Answer:
        """Read a description: the formula, what it assumes, a picture of its mask, example weights. Nothing is made:
        look at it before anything is."""
        return await self._now("understand", {"spec": spec})

    async def show(
        self, bundle: Bundle, programs: Annotated[bool, Field(description="Also give TL and CuTe C++.")] = False
    ) -> Answer:
        """Show a bundle: operator, the reason for each parameter, resources, verdict, speed."""
        return await self._now("show", {"bundle": self._bundle(bundle), "programs": programs})

    # -------------------------------------------------------------- quick stages
    async def check(self, program: Program, target: Target = "") -> Answer:
        """Check a TL program: names, types, shapes, coverage, concurrency, budgets. All findings at once, each with
        code, line, column, message and mend."""
        return await self._now("check", {"program": program, "target": target or None})

    async def interpret(
        self,
        program: Program,
        sizes: Annotated[dict[str, int], Field(description="Run-time sizes, as {B: 1, Sq: 100}.")],
        scalars: Annotated[dict[str, float] | None, Field(description="Scalars, 1 where not given.")] = None,
        seed: Annotated[int, Field(ge=0, lt=1 << 32, description="Of the random inputs.")] = 0,
    ) -> Answer:
        """Run a TL program on the CPU on random inputs, tile by tile, and describe its tensors. Finds faults; whether
        the numbers are right is for the judge. Take small sizes that no tile divides."""
        return await self._now(
            "interpret", {"program": program, "sizes": sizes, "scalars": scalars or {}, "seed": seed}
        )

    async def schedule(self, program: Program, target: Target = "") -> Answer:
        """Write out the choices of a program's Schedule block: TL code to scheduled TL, with what each step changed."""
        return await self._now("schedule", {"program": program, "target": target or None})

    async def translate(self, program: Program, target: Target = "") -> Answer:
        """Translate scheduled TL, or code with a Schedule, to CuTe C++."""
        return await self._now("translate", {"program": program, "target": target or None})

    # -------------------------------------------------------------- stages that take long
    async def start_build(self, program: Program, target: Target = "", arch: Arch = "") -> Answer:
        """Compile each kernel of a TL program to a cubin, without a GPU; the result reports registers, spills, shared
        memory and occupancy."""
        return await self._start("build", {"program": program, "target": target or None, "arch": arch or None})

    async def start_judge(
        self,
        program: Annotated[str, Field(description="A TL program; empty where a bundle is judged.")] = "",
        bundle: Annotated[str, Field(description="A bundle's folder; empty where a program is judged.")] = "",
        spec: MaybeSpec = None,
        reference: Reference = "",
        framework: Framework = "auto",
        seed: Annotated[int | None, Field(ge=0, lt=1 << 63, description="Repeat a judgement; else drawn.")] = None,
    ) -> Answer:
        """Judge a program against float64 on adversarial inputs, by a spec, a reference, or both; a bundle by its own
        spec. The result is a verdict: accepted, rejected or inconclusive, and every check that failed."""
        if bool(program) == bool(bundle):
            raise SpecError("judge takes a program or a bundle", hint="give one of them", field="program")
        if program and spec is None and not reference:
            raise SpecError(
                "nothing says what the program should compute", hint="give a spec, or a reference", field="spec"
            )
        return await self._start(
            "judge",
            {
                "program": program,
                "bundle": self._bundle(bundle) if bundle else "",
                "spec": spec,
                "reference": self._root.reference(reference) if reference else None,
                "framework": framework,
                "seed": seed,
            },
        )

    async def start_generate(
        self,
        spec: MaybeSpec = None,
        program: Annotated[
            str, Field(description="TL code to begin with; empty: the built-in author writes it from the spec.")
        ] = "",
        target: Annotated[str, Field(description="A GPU's name, or auto for the one present.")] = "auto",
        arch: Arch = "",
        until: Annotated[Stage, Field(description="Stop after this stage.")] = "bundle",
        out: Annotated[str, Field(description="The bundle's folder; empty: named after kernel and target.")] = "",
        judge: Annotated[bool, Field(description="Judge the program before it becomes a bundle.")] = True,
        force: Annotated[bool, Field(description="Replace a bundle that is there already.")] = False,
        reference: Reference = "",
        framework: Framework = "auto",
    ) -> Answer:
        """Run every stage in order, from a spec or from TL code of yours, to a judged bundle; a rejected program
        becomes none. With until="code" the built-in author shows how it would write the program, with reasons."""
        if spec is None and not program:
            raise SpecError("there is neither a spec nor a program", hint="give one of them, or both", field="spec")
        return await self._start(
            "generate",
            {
                "spec": spec,
                "program": program or None,
                "target": target,
                "arch": arch or None,
                "until": until,
                "out": str(self._root.inside(out, "out")) if out else None,
                "judge": judge,
                "force": force,
                "reference": self._root.reference(reference) if reference else None,
                "framework": framework,
            },
        )

    async def start_bench(
        self,
        bundle: Bundle,
        batch: Annotated[int, Field(ge=1, le=1 << 20, description="Batch.")] = 4,
        length: Annotated[int, Field(ge=1, le=1 << 20, description="Length of queries and keys.")] = 4096,
        keep: Annotated[bool, Field(description="Keep the times in the bundle.")] = True,
    ) -> Answer:
        """Time a bundle beside PyTorch's attention; needs an NVIDIA GPU and PyTorch."""
        given = {"bundle": self._bundle(bundle), "batch": batch, "length": length, "keep": keep}
        return await self._start("bench", given)

    # -------------------------------------------------------------- jobs
    async def poll(
        self,
        job: JobName,
        wait_s: Annotated[float, Field(ge=0, le=MOST_POLL_S, description="Wait so long for it to end.")] = 15,
    ) -> Answer:
        """Say how far a job is, or give its result; waits until it ends, at most wait_s seconds."""
        found = self._jobs.get(job)
        await _ended(found, wait_s)
        return told(found)

    async def cancel(self, job: JobName) -> Answer:
        """End a job; one that has ended stays as it is."""
        found = await anyio.to_thread.run_sync(self._jobs.cancel, job)
        return success(_state(found))

    async def jobs(self) -> Answer:
        """List the jobs of this server."""
        return success({"jobs": [_state(job) for job in self._jobs.all()]})

    # -------------------------------------------------------------- behind them
    def _bundle(self, path: str) -> str:
        return str(self._root.inside(path, "bundle"))

    async def _start(self, tool: str, arguments: dict[str, Any]) -> Answer:
        job = await anyio.to_thread.run_sync(self._jobs.start, tool, arguments)
        return success({**_state(job), "hint": f"poll {job.name} until it is not running"})

    async def _now(self, tool: str, arguments: dict[str, Any]) -> Answer:
        job = await anyio.to_thread.run_sync(self._jobs.start, tool, arguments)
        await _ended(job, WAIT_S)
        if job.answer is None:
            return success({**_state(job), "hint": f"this takes long: poll {job.name}, or cancel it"})
        return job.answer


async def _ended(job: Job, seconds: float) -> None:
    """Wait for a job, on the loop: other calls are served meanwhile, and this one may be cancelled."""
    until = time.monotonic() + seconds
    while job.running and time.monotonic() < until:
        await anyio.sleep(_LOOK_S)


def _state(job: Job) -> dict[str, Any]:
    return {"job": job.name, "tool": job.tool, "state": job.state, "seconds": job.seconds}


def told(job: Job) -> Answer:
    """Give a job's state, and its result or error once it has ended."""
    answer = {"ok": job.state in ("running", "done"), **_state(job), "progress": job.progress}
    if job.answer is None:
        return answer
    if "error" in job.answer:
        return {**answer, "error": job.answer["error"]}
    return {**answer, "result": {name: value for name, value in job.answer.items() if name != "ok"}}
