"""Commands of a study: requests answered by models, counted.

Not here: the stages (cli.py), the numbers (study/).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from qimeng_attention import terminal
from qimeng_attention.cli_guard import Json, guarded

Reuse = Annotated[
    Path | None,
    typer.Option(
        "--reuse", help="Transcripts of two-stage samples, from which `translated` goes on; those beside --out if none."
    ),
]
Gpu = Annotated[
    Path | None,
    typer.Option(
        "--gpu", help="Where kernels in CUDA wait for a verdict, if no GPU here runs them; `gpu` beside --out if none."
    ),
]
GpuName = Annotated[
    str | None, typer.Option("--gpu-name", help="The GPU that judges them, for the samples; the one that is here.")
]
GpuArch = Annotated[
    str | None,
    typer.Option("--gpu-arch", help="Its architecture, as sm_90, where requests name another GPU; that of this one."),
]

app = typer.Typer(no_args_is_help=True, help="Compare methods and models: requests in words, answered and judged.")


@app.callback()
def study() -> None:
    """Compare methods and models: requests in words, answered and judged."""


@app.command(
    epilog="Example: qimeng study run benchmarks/study/requests --author file:answers --samples 2 --out samples.jsonl"
)
@guarded
def run(
    folder: Annotated[Path, typer.Argument(help="Requests: folders with request.yaml and reference.py.")],
    author: Annotated[str, typer.Option("--author", help="Who answers, as in `qimeng generate --author`.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The file of samples; what it holds is not done again.")],
    model: Annotated[str, typer.Option("--model", help="What samples call the model; the author's name if none.")] = "",
    methods: Annotated[list[str] | None, typer.Option("--method", help="May be repeated; two-stage if none.")] = None,
    samples: Annotated[int, typer.Option("--samples", min=1, help="Of each request and method.")] = 1,
    round_: Annotated[int, typer.Option("--round", min=1, max=2, help="Take the requests of this round.")] = 1,
    stratum: Annotated[str | None, typer.Option("--stratum", help="known or unseen; both if none.")] = None,
    max_usd: Annotated[
        float | None, typer.Option("--max-usd", min=0, help="Make no call that might cost more.")
    ] = None,
    max_calls: Annotated[int | None, typer.Option("--max-calls", min=1, help="Make no more calls than this.")] = None,
    reuse: Reuse = None,
    gpu: Gpu = None,
    gpu_name: GpuName = None,
    gpu_arch: GpuArch = None,
    as_json: Json = False,
) -> None:
    """Ask a model for every request, pass each answer through the gates, and record what came of it."""
    from qimeng_attention.author.llm.methods import method
    from qimeng_attention.llm.budget import Budget
    from qimeng_attention.study.record import plan
    from qimeng_attention.study.requests import load_requests
    from qimeng_attention.study.run import Trial, recorded_client, requests_by_name, run_study
    from qimeng_attention.study.samples import SampleStore
    from qimeng_attention.workflow.gpu import OnGpu
    from qimeng_attention.workflow.waiting import JudgeHere

    requests = requests_by_name(load_requests(folder, stratum=stratum, rounds=(round_,)))  # type: ignore[arg-type]
    names = tuple(method(m).name for m in methods or ["two-stage"])
    planned = plan(requests, names, model or author, samples, round_)  # type: ignore[arg-type]
    budget = Budget(max_usd, None, max_calls)
    client_of = recorded_client(author, out.parent / "transcripts", budget, reuse)
    judging = _judging(gpu_name, gpu_arch)
    with JudgeHere() as here:
        trial = Trial(requests, SampleStore(out), client_of, gpu=OnGpu(gpu or out.parent / "gpu", here), **judging)
        waiting = run_study(trial, planned, lambda key, sample: None if as_json else _told(key, sample))
    facts = {"planned": len(planned), "waiting": len(waiting), "samples": str(out), "spent": budget.line()}
    terminal.print_json(facts) if as_json else terminal.facts(facts)
    if waiting:
        raise typer.Exit(4)


def _judging(name: str | None, arch: str | None) -> dict[str, Any]:
    """Say which GPU judges kernels in CUDA, and what they are built for: by default the one that is here."""
    from qimeng_attention.workflow.waiting import gpu_here

    here = gpu_here() if name is None or arch is None else ("", "")
    return {"gpu_name": name or here[0] or "gpu", "gpu_arch": arch or here[1] or None}


def _told(key: tuple[str, str, str, int, int], sample: Any) -> None:
    request, method, _, _, number = key
    if sample is None:
        outcome = "waits for an answer or a verdict"
    else:
        last = sample.attempts[-1]
        outcome = "accepted" if sample.accepted else f"failed ({last.refused_by or last.fault})"
        outcome += f" after {sample.repairs} repairs" if sample.repairs else ""
    terminal.listing(f"  {request:24} {method:10} sample {number}  {outcome}")


@app.command(epilog="Example: qimeng study summary samples.jsonl --figure study.svg --results benchmarks/results")
@guarded
def summary(
    files: Annotated[list[Path], typer.Argument(help="Files of samples, a JSON line each.", show_default=False)],
    model: Annotated[str | None, typer.Option("--model", help="Only samples of this model.")] = None,
    round_: Annotated[int | None, typer.Option("--round", help="Only samples of this round.")] = None,
    k: Annotated[
        int | None, typer.Option("--k", min=1, help="Of pass@k; the fewest samples of a request if none.")
    ] = None,
    name: Annotated[str, typer.Option("--name", help="What the results file is called.")] = "study",
    results: Annotated[Path | None, typer.Option("--results", help="Write NAME.json into this folder.")] = None,
    figure: Annotated[Path | None, typer.Option("--figure", help="Draw it into this file, .svg or .png.")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the tables as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Say what the samples of a study say together: pass@k with intervals, gates, repairs, kinds of failure."""
    from qimeng_attention.study import plots, tables
    from qimeng_attention.study.record import GATES
    from qimeng_attention.study.results import results_of
    from qimeng_attention.study.samples import read_samples
    from qimeng_attention.study.summary import choose

    chosen = choose(read_samples(files), model=model, round_=round_)
    made = results_of(chosen, name=name, k=k)
    if results is not None:
        terminal.note(f"written: {made.save(results)}")
    if figure is not None:
        terminal.note(f"written: {plots.draw(made.summary, figure)}")
    if as_json:
        terminal.print_json(made.summary)
        return
    if markdown:
        terminal.listing(tables.markdown(made.summary))
        return
    terminal.table(f"{chosen[0].model}, round {chosen[0].round}", tables.HEAD, tables.rows(made.summary))
    terminal.table(
        "samples that pass each gate", ["method", "stratum", "samples", *GATES], tables.gate_rows(made.summary)
    )
    terminal.table("what it took", tables.COST_HEAD, tables.cost_rows(made.summary))
    if failures := tables.kind_rows(made.summary):
        methods = [m for m in made.summary if m != "facts"]
        terminal.table(
            "attempts that show a kind of failure / samples that ended with it", ["kind", *methods], failures
        )
