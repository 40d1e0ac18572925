"""The command `qimeng`: one thin command a stage.

Exit codes: 0 done; 1 a gate refused (diagnostics, or a verdict of rejected); 2 a request that makes no sense; 3
something this machine lacks, or the tool chain refused. With --json one JSON value goes to stdout, errors too.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from qimeng_attention import (
    __version__,
    cli_author,
    cli_improve,
    cli_machine,
    cli_mcp,
    cli_show,
    cli_study,
    cli_waiting,
    terminal,
)
from qimeng_attention import cli_options as options
from qimeng_attention.cli_guard import Json, guarded
from qimeng_attention.errors import SpecError

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="From the description of an attention operator to a verified FlashAttention-class CUDA kernel.",
    epilog="Exit codes: 0 done, 1 refused by a gate, 2 a request that makes no sense, 3 this machine lacks something.",
)

Tl = Annotated[Path, typer.Argument(help="A TL file.", show_default=False)]


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(
            f"cannot read {path}: {type(error).__name__}",
            hint="name a text file",
            field="file",
            value=str(path),
        ) from None


def _version(value: bool) -> None:
    if value:
        terminal.out.print(f"qimeng-attention {__version__}")
        raise typer.Exit


@app.callback()
def main_options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """From the description of an attention operator to a verified FlashAttention-class CUDA kernel."""


# ------------------------------------------------------------------ generate


def _spec(path: Path | None, flags: dict[str, Any]) -> Any:
    from qimeng_attention.spec import AttentionSpec

    given = {k: v for k, v in flags.items() if v is not None}
    if path is None:
        return AttentionSpec.make(**given)
    spec = AttentionSpec.load(path)
    fields = spec.model_dump()
    if "outputs" not in spec.model_fields_set:
        fields.pop("outputs")  # they follow the weights
    return AttentionSpec.make(**{**fields, **given}) if given else spec


@app.command(epilog="Example: qimeng generate --Hq 32 --Hk 8 --mask causal --target A100 --out gqa")
@guarded
def generate(
    source: options.Source = None,
    hq: Annotated[int | None, typer.Option("--Hq", help="Query heads.")] = None,
    hk: Annotated[int | None, typer.Option("--Hk", help="Key and value heads.")] = None,
    dqk: Annotated[int | None, typer.Option("--Dqk", help="Head dim of queries and keys.")] = None,
    dv: Annotated[int | None, typer.Option("--Dv", help="Head dim of values.")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp16.")] = None,
    mask: options.Mask = None,
    score: Annotated[str | None, typer.Option(help="An expression of the scaled score, b, h, q_idx, kv_idx.")] = None,
    softcap: Annotated[float | None, typer.Option(help="cap * tanh(score / cap).")] = None,
    weights: options.Weights = None,
    scale: Annotated[float | None, typer.Option(help="The default scale; 1 / sqrt(Dqk) if none.")] = None,
    tensor: options.Tensors = None,
    varlen: options.Varlen = False,
    seqused_k: options.Lengths = None,
    page_size: Annotated[int | None, typer.Option(help="Keys of a page of a cache in pages: 1 to 256.")] = None,
    spec_file: options.SpecFile = None,
    reference: options.Reference = None,
    framework: options.Framework = "auto",
    target: options.TargetName = "auto",
    arch: options.Arch = None,
    author: cli_author.Author = cli_author.PLANNER,
    method: cli_author.MethodName = "two-stage",
    repairs: cli_author.Repairs = 3,
    samples: cli_author.Samples = 1,
    yes: cli_author.Yes = False,
    run: cli_author.Run = None,
    improve: cli_improve.Rounds = 0,
    improver: cli_improve.Improver = None,
    at: cli_improve.At = cli_improve.DEFAULT_AT,
    max_usd: cli_author.MostUsd = None,
    max_tokens: cli_author.MostTokens = None,
    max_calls: cli_author.MostCalls = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="The bundle's folder.")] = None,
    emit: options.Emit = "bundle",
    judge: Annotated[bool, typer.Option(help="Judge the program before it is built into a bundle.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there already.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the result only.")] = False,
    as_json: Json = False,
) -> None:
    """Make a verified kernel: every stage, from a description or words to a bundle."""
    given = dict(locals())
    code, spec = _asked_for(given)
    if improve:
        cli_improve.refuse(given, spec)
    if author != cli_author.PLANNER:
        cli_author.generate(given, spec)
    else:
        _planned(given, code, spec)


def _asked_for(given: dict[str, Any]) -> tuple[str | None, Any]:
    """Read what a request begins with: TL and perhaps a spec, a spec, or nothing where words say it."""
    names = ("Hq", "Hk", "Dqk", "Dv", "dtype", "mask", "score", "softcap", "weights", "scale")
    flags = {n: given[n.lower() if n[0] in "HD" else n] for n in names}
    flags |= {"varlen": given["varlen"] or None, "seqused_k": given["seqused_k"], "page_size": given["page_size"]}
    flags = {k: v for k, v in flags.items() if v is not None} | _tensors(given["tensor"])
    if given["author"] == cli_author.PLANNER:
        cli_author.refuse_words(given["source"])
    elif cli_author.is_function(given["source"]):
        given["fixed"] = flags
        return None, None
    elif cli_author.is_words(given["source"]):
        cli_author.refuse_flags(flags)
        return None, None
    return _source(given["source"], given["spec_file"], flags)


def _planned(given: dict[str, Any], code: str | None, spec: Any) -> None:
    """Run every stage with the planner's program, or with TL that was given."""
    from qimeng_attention.workflow import run
    from qimeng_attention.workflow.attempts import Truth

    verbose = not given["quiet"] and not given["as_json"]
    if verbose and spec is not None:
        from qimeng_attention.report import show_understood, understand

        terminal.heading("what is asked for")
        show_understood(terminal.page_console(), understand(spec))
    emit = given["emit"]
    where = {"target": given["target"], "arch": given["arch"], "out": given["out"], "overwrite": given["force"]}
    with (
        _compared(given["reference"], spec, given["framework"], verbose) as own,
        terminal.progress_bar("judging", verbose) as progress,
    ):
        report = _report if verbose else None
        judge: dict[str, Any] = {"judge": given["judge"], "progress": progress, "own": own}
        until = "cubin" if given["improve"] else emit
        outcome = run(spec, code=code, report=report, until=until, **judge, **where)
        if given["improve"]:
            cli_improve.improve_planned(outcome, Truth(spec=spec, own=own), given, spec.describe()[0])
    for line in outcome.notes:
        terminal.note(line)
    _finish_generate(outcome, emit, given["as_json"], given["quiet"])


@contextmanager
def _compared(reference: str | None, spec: Any, framework: str, verbose: bool) -> Iterator[Any]:
    """Open a user's own function once it agrees with the description, and say how closely."""
    from qimeng_attention.workflow.judgement import agreeing

    with ExitStack() as stack:
        with terminal.progress_bar("comparing", verbose and reference is not None) as progress:
            own = stack.enter_context(agreeing(reference, spec, framework, progress=progress))
        if verbose and own is not None:
            terminal.heading("your function")
            terminal.listing(f"  {own.name} ({own.function.framework}) {own.agreement}")
        yield own


def _tensors(given: list[str] | None) -> dict[str, Any]:
    """Read the named tensors that flags declare."""
    from qimeng_attention.named_tensors import Problem, parse

    try:
        return {"tensors": dict(map(parse, given))} if given else {}
    except Problem as problem:
        raise SpecError(problem.message, hint=problem.hint, field="tensors", value=" ".join(given or ())) from None


def _source(given: str | None, spec_file: Path | None, flags: dict[str, Any]) -> tuple[str | None, Any]:
    """Read what generate begins with: a TL file and perhaps a spec for the judge, or a spec."""
    source = None if given is None else Path(given)
    if source is None or source.suffix != ".tl":
        return None, _spec(source, flags)
    return _read(source), _spec(spec_file, flags) if spec_file is not None or flags else None


def _finish_generate(outcome: Any, emit: str, as_json: bool, quiet: bool) -> None:
    results = outcome.results
    verdict = results.verdict
    if as_json:
        terminal.print_json(_outcome_json(outcome))
    elif emit != "bundle" and quiet:
        terminal.listing(_stage_text(results, emit))
    elif outcome.folder is not None and quiet:
        terminal.listing(str(outcome.folder))
    elif outcome.folder is not None:
        terminal.heading("bundle")
        folder = os.path.relpath(outcome.folder)
        shown = str(outcome.folder) if folder.startswith("..") else folder
        terminal.listing(f"  {shown}    ({terminal.own_command()} show {shown})")
    if verdict is not None and verdict.verdict != "accepted":
        raise typer.Exit(1)
    if emit == "bundle" and outcome.folder is None:
        raise typer.Exit(3)


def _stage_text(results: Any, stage: str) -> str:
    if stage in ("sketch", "code", "scheduled"):
        return str(getattr(results, stage))
    if stage == "cute":
        return str(results.source)
    return json.dumps(results.built.to_json() if stage == "cubin" else results.verdict.to_json(), indent=1)


def _outcome_json(outcome: Any) -> dict[str, Any]:
    r = outcome.results
    return {
        "target": r.target.name,
        "arch": r.arch,
        "spec": r.spec.model_dump(mode="json") if r.spec else None,
        "sketch": r.sketch,
        "code": r.code,
        "reasons": r.reasons,
        "scheduled": r.scheduled,
        "cute": r.source or None,
        "build": r.built.to_json() if r.built else None,
        "verdict": r.verdict.to_json() if r.verdict else None,
        "bundle": str(outcome.folder) if outcome.folder else None,
        "seconds": outcome.seconds,
        "notes": outcome.notes,
    }


def _report(stage: str, results: Any, seconds: float) -> None:
    """Print what a stage made."""
    terminal.heading(f"{stage} ({seconds:.1f} s)")
    if stage == "sketch":
        terminal.listing(results.sketch or results.code)
        for reason in (results.reasons or {}).get("reasons", []):
            terminal.listing(f"  {reason['parameter']}: {reason['value']}  because {reason['why']}")
    elif stage in ("code", "scheduled"):
        terminal.listing(getattr(results, stage))
    elif stage == "cute":
        lines = results.source.splitlines()
        terminal.listing("\n".join(lines[:24]) + f"\n  ... {len(lines)} lines of CuTe C++ in all")
    elif stage == "cubin":
        for t, built in zip(results.translations, results.builds, strict=True):
            if len(results.builds) > 1:
                terminal.listing(f"  {t.name}")
            terminal.resources(built.report.to_json())
            terminal.listing(
                f"  built for {results.arch}"
                + (" (from the cache)" if built.cached else f" in {built.seconds:.1f} s by NVRTC")
            )
    elif stage == "verdict":
        print_verdict(results.verdict)


def print_verdict(verdict: Any) -> None:
    """Print a verdict: the decision, the worst error against its bound, clauses shown, and every check that failed."""
    if verdict is None:
        return
    checks, failed = verdict.checks, [c for c in verdict.checks if not c.passed]
    terminal.listing(
        f"  {verdict.verdict} ({verdict.reason}) in {verdict.seconds:.1f} s, on "
        f"the {verdict.where.upper()}, seed {verdict.entropy}"
    )
    if checks and not failed:
        worst = max(checks, key=lambda c: c.worst_error / c.bound if c.bound else 0.0)
        terminal.listing(
            f"  nearest to its bound: {worst.output} of {worst.case}: error "
            f"{worst.worst_error:.3g}, bound {worst.bound:.3g}"
        )
    if verdict.reference is not None:
        terminal.listing(f"  also against {verdict.reference['name']}, which agrees with the description")
    for clause in verdict.clauses:
        shown = "implied by the others" if clause.implied else f"its lack would show: {clause.caught_by}"
        terminal.listing(f"  clause {clause.name}: {shown}")
    for check in failed[:12]:
        terminal.listing(f"  failed: {check.case}: {check.reason}")


# ------------------------------------------------------------------ the language


@app.command(epilog="Example: qimeng check program.tl --target A100")
@guarded
def check(
    file: Tl,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Check against this GPU.")] = None,
    as_json: Json = False,
) -> None:
    """Check a TL program: names, types, shapes, coverage, concurrency, budgets; all findings at once."""
    from qimeng_attention.tl.checker import check_text

    programs = check_text(_read(file), target=target, file=str(file))
    if as_json:
        terminal.print_json(
            {
                "ok": True,
                "kernels": [
                    {"name": p.kernel.name, "level": p.level, "inputs": p.inputs, "outputs": p.outputs}
                    for p in programs
                ],
            }
        )
        return
    for p in programs:
        terminal.listing(
            f"{p.kernel.name or file.stem}: ok ({p.level}, {', '.join(p.inputs)} -> {', '.join(p.outputs)})"
        )


@app.command(
    epilog="Example: qimeng interpret program.tl --sizes B=1,Sq=100,Sk=120 --scalars scale=0.09 --save out.npz"
)
@guarded
def interpret(
    file: Tl,
    sizes: Annotated[str, typer.Option(help="Run-time sizes, as B=1,Sq=100.")] = "",
    scalars: Annotated[str, typer.Option(help="Scalars, as scale=0.1.")] = "",
    seed: Annotated[int, typer.Option(help="Of the random inputs, and of how roles interleave.")] = 0,
    save: Annotated[Path | None, typer.Option(help="Write inputs and outputs to this .npz file.")] = None,
    as_json: Json = False,
) -> None:
    """Run a TL program on the CPU on random inputs, tile by tile."""
    from qimeng_attention.workflow.interpretation import interpret_file

    found = interpret_file(_read(file), str(file), _assignments(sizes, int), _assignments(scalars, float), seed, save)
    if as_json:
        terminal.print_json(found)
        return
    terminal.table(
        "",
        ["tensor", "shape", "finite", "least", "greatest", "mean"],
        [[t["name"], t["shape"], t["finite"], t["least"], t["greatest"], t["mean"]] for t in found["tensors"]],
    )


def _assignments(text: str, kind: type) -> dict[str, Any]:
    found = {}
    for item in filter(None, (x.strip() for x in text.split(","))):
        name, mark, value = item.partition("=")
        try:
            if not mark:
                raise ValueError
            found[name.strip()] = kind(value)
        except ValueError:
            raise SpecError(
                f"'{item}' is no assignment", hint="write B=1,Sq=100", field="assignment", value=item
            ) from None
    return found


@app.command(epilog="Example: qimeng schedule code.tl --steps")
@guarded
def schedule(
    file: Tl,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Check against this GPU.")] = None,
    steps: Annotated[bool, typer.Option("--steps", help="Print what each rewriting changes.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the scheduled program here.")] = None,
    as_json: Json = False,
) -> None:
    """Apply the choices of a Schedule block: TL code to scheduled TL code."""
    from qimeng_attention.workflow.scheduling import schedule_file

    text, differences = schedule_file(_read(file), str(file), target)
    if out is not None:
        out.write_text(text, "utf-8")
    if as_json:
        terminal.print_json({"scheduled": text, "steps": differences})
        return
    if steps:
        for step in differences:
            terminal.heading(f"{step['choice']}  ({step['kind']})")
            terminal.listing(step["difference"])
    elif out is None:
        terminal.listing(text)


@app.command(epilog="Example: qimeng translate scheduled.tl --target A100 > kernel.cu")
@guarded
def translate(
    file: Tl,
    target: Annotated[str | None, typer.Option("--target", "-t", help="Translate for this GPU.")] = None,
    as_json: Json = False,
) -> None:
    """Translate scheduled TL (or code with a Schedule) to CuTe C++."""
    from qimeng_attention.workflow.scheduling import translate_file

    found = translate_file(_read(file), str(file), target)
    if as_json:
        terminal.print_json(
            [
                {
                    "name": t.name,
                    "source": t.source,
                    "threads": t.threads,
                    "shared_bytes": t.shared_bytes,
                    **t.facts,
                }
                for t in found
            ]
        )
        return
    for t in found:
        sys.stdout.write(t.source)


@app.command(epilog="Example: qimeng build kernel.cu --target A100 --arch sm_90 --out kernel.cubin")
@guarded
def build(
    file: Annotated[
        Path, typer.Argument(help="A TL file or a CuTe C++ file that `translate` made.", show_default=False)
    ],
    target: options.TargetName = "auto",
    arch: options.Arch = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write the cubin here.")] = None,
    as_json: Json = False,
) -> None:
    """Compile to a cubin and report registers, spills, shared memory, occupancy and instructions."""
    from qimeng_attention.workflow.scheduling import build_file

    built = build_file(_read(file), file, target, arch)
    if out is not None:
        out.write_bytes(built.cubin)
    if as_json:
        terminal.print_json(built.to_json())
        return
    terminal.listing(
        f"{built.name} for {built.arch}: {len(built.cubin):,} bytes, {built.seconds:.1f} s"
        + (" (from the cache)" if built.cached else "")
    )
    terminal.resources(built.report.to_json())
    for line in built.notes:
        terminal.note(line)


# ------------------------------------------------------------------ judging and timing


@app.command(
    epilog="Example: qimeng judge code.tl --spec spec.yaml     or: qimeng judge op.tl --reference ref.py:attention"
)
@guarded
def judge(
    file: Annotated[
        Path,
        typer.Argument(
            help="A TL file, or a bundle's folder (its kernel is judged where there is a GPU).",
            show_default=False,
        ),
    ],
    spec_file: Annotated[Path | None, typer.Option("--spec", help="What it should compute.")] = None,
    reference: Annotated[
        str | None, typer.Option("--reference", help="FILE.py:FUNCTION that computes the same, in PyTorch or NumPy.")
    ] = None,
    framework: options.Framework = "auto",
    seed: Annotated[int | None, typer.Option(help="Repeat a judgement; drawn anew by default.")] = None,
    as_json: Json = False,
) -> None:
    """Judge a program against fp64 on adversarial inputs."""
    from qimeng_attention.workflow.judgement import Against, judge_path

    with terminal.progress_bar("judging", not as_json) as progress:
        verdict = judge_path(file, Against(spec_file, reference, framework), seed, progress)
    if as_json:
        terminal.print_json(verdict.to_json())
    else:
        print_verdict(verdict)
    if verdict.verdict != "accepted":
        raise typer.Exit(1)


@app.command(epilog="Example: qimeng bench gqa --B 4 --S 4096")
@guarded
def bench(
    bundle: Annotated[Path, typer.Argument(help="A bundle's folder.", show_default=False)],
    batch: Annotated[int, typer.Option("--B", help="Batch.")] = 4,
    length: Annotated[int, typer.Option("--S", help="Length of queries and keys.")] = 4096,
    keep: Annotated[bool, typer.Option(help="Keep the times in the bundle, where `qimeng show` finds them.")] = True,
    as_json: Json = False,
) -> None:
    """Time a bundle against PyTorch's attention in one process (needs a GPU)."""
    from qimeng_attention.bench.against_sdpa import bench_bundle

    with terminal.progress_bar("timing", not as_json) as progress:
        measured = bench_bundle(bundle, batch, length, keep=keep, progress=progress)
    if as_json:
        terminal.print_json(measured)
        return
    from qimeng_attention.report.page import speed_of

    terminal.facts(dict(speed_of(measured)))


app.command(epilog="Example: qimeng show gqa     or: qimeng show runs/20261128-120154-causal --html run.html")(
    cli_show.show
)

# ------------------------------------------------------------------ the machine, and agents

for command, example in (
    (cli_improve.race, "race runs/20261128-150000-window"),
    (cli_machine.targets, "targets --json"),
    (cli_machine.doctor, "doctor"),
    (cli_machine.cache, "cache --clear"),
    (cli_mcp.mcp, "mcp --root out"),
    (cli_waiting.judge_waiting, "judge-waiting out/gpu --jobs 8"),
):
    app.command(epilog=f"Example: qimeng {example}")(command)
app.add_typer(cli_study.app, name="study")


def main() -> None:
    """Run the command line."""
    app()
