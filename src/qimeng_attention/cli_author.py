"""`generate --author`: a language model writes the program; what it is asked, what it may cost, what is shown.

Not here: the workflow itself (workflow/modelled.py), clients (llm/clients.py).
"""

from __future__ import annotations

import re
import sys
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from qimeng_attention import cli_improve, terminal
from qimeng_attention.errors import QimengError, SpecError

PLANNER = "planner"
_FILES = (".yaml", ".yml", ".json", ".tl")

Author = Annotated[
    str,
    typer.Option(
        "--author",
        help="Who writes the program: planner (built in), or a model: replay, file:FOLDER, command:PROGRAM, "
        "openai:MODEL, anthropic:MODEL, deepseek:MODEL, ollama:MODEL, vllm:MODEL.",
    ),
]
MethodName = Annotated[
    str,
    typer.Option(
        "--method",
        help="How a model is asked: two-stage (a sketch, then code), one-stage, translated (as two-stage, and then the "
        "model translates to CUDA), or vanilla and cot (CUDA without TL).",
    ),
]
Repairs = Annotated[int, typer.Option(min=0, max=20, help="How often a model may mend a refused program.")]
Samples = Annotated[int, typer.Option(min=1, max=64, help="Programs to ask for; the best one is kept.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask whether the words were understood.")]
Run = Annotated[
    Path | None, typer.Option("--run", help="The run's folder; a run begun again there asks nothing twice.")
]
MostUsd = Annotated[float | None, typer.Option("--max-usd", min=0, help="Make no call that might cost more in all.")]
MostTokens = Annotated[
    int | None, typer.Option("--max-tokens", min=1, help="Make no call that might take more in all.")
]
MostCalls = Annotated[int | None, typer.Option("--max-calls", min=1, help="Make no more calls than this.")]


def is_words(source: str | None) -> bool:
    """Tell whether what stands in the place of a file is a request in words."""
    text = source or ""
    return bool(text) and Path(text).suffix not in _FILES and bool(re.search(r"\s", text))


def is_function(source: str | None) -> bool:
    """Tell whether what stands in the place of a file names a function of one."""
    return source is not None and re.fullmatch(r".+\.py:\w+", source) is not None


def refuse_words(source: str | None) -> None:
    """Refuse words, and a function, where no model is to read them.

    Raises:
        SpecError: they are words, or name a function.
    """
    if is_function(source) or is_words(source):
        what = "that is a function" if is_function(source) else "in words"
        raise SpecError(
            f"a request {what} is read by a language model, and the author is the planner",
            hint="name one: --author anthropic:MODEL, file:FOLDER or replay, or give flags such as --Hq",
            field="author",
            value=PLANNER,
        )


def refuse_flags(flags: dict[str, Any]) -> None:
    """Refuse fields of a description beside words, which nobody would read.

    Raises:
        SpecError: there are some.
    """
    if flags:
        raise SpecError(
            f"the words say what is asked for, and flags beside them ({', '.join(flags)}) would not count",
            hint="say it in the words, or give flags alone",
            field=next(iter(flags)),
            value=str(next(iter(flags.values()))),
        )


def generate(given: dict[str, Any], spec: Any) -> None:
    """Run the workflow with a model, show what happens, and end with the exit code that fits.

    Args:
        given: the options of `qimeng generate`, by name.
        spec: the description, where one was given instead of words.
    """
    from qimeng_attention.llm.budget import Budget
    from qimeng_attention.llm.clients import careful, open_client
    from qimeng_attention.llm.transcript import Transcript
    from qimeng_attention.workflow.gpu import OnGpu
    from qimeng_attention.workflow.modelled import Asked, generate_with_model
    from qimeng_attention.workflow.noted import Noted
    from qimeng_attention.workflow.waiting import JudgeHere

    function = _function(given)
    words = str(given["source"]) if spec is None else spec.describe()[0]
    asked = Asked(
        words=words if function is None else function.words,
        spec=spec,
        function=function,
        target=None if given["target"] == "auto" and spec is None else given["target"],
        arch=given["arch"],
        reference=given["reference"] if function is None else function.place,
        framework=given["framework"],
        method=given["method"],
        repairs=given["repairs"],
        samples=given["samples"],
    )
    client = open_client(given["author"])
    budget = Budget(given["max_usd"], given["max_tokens"], given["max_calls"])
    verbose = not given["quiet"] and not given["as_json"]
    shown = _Shown(verbose, given["yes"], budget, asked)
    folder = given["run"] or new_run(asked.words)
    with ExitStack() as stack:
        facts = {"method": asked.method}
        transcript = stack.enter_context(Transcript(folder / "transcript.jsonl", words=asked.words, facts=facts))
        shown.noted = noted = Noted(transcript)
        author = careful(client, transcript, budget)
        improver = careful(open_client(given["improver"]), transcript, budget) if given["improver"] else author
        made = generate_with_model(
            asked,
            author,
            confirm=shown.confirm,
            out=given["out"],
            overwrite=given["force"],
            report=shown.attempt,
            gpu=OnGpu(folder / "gpu", stack.enter_context(JudgeHere())),
            refine=cli_improve.refiner(given, improver, transcript, verbose) if given["improve"] else None,
        )
        noted.outcome(made)
    _finish(made, folder, budget, given)


def _function(given: dict[str, Any]) -> Any:
    """Give the function that is asked for, or None.

    Raises:
        SpecError: another one is named as the reference.
    """
    from qimeng_attention.workflow.from_function import FunctionAsked

    if not is_function(given["source"]):
        return None
    if given["reference"] not in (None, given["source"]):
        raise SpecError(
            "the function that is asked for is the reference, and --reference names another one",
            hint="leave --reference out",
            field="reference",
            value=given["reference"],
        )
    return FunctionAsked(given["source"], given["framework"], given["fixed"])


class _Shown:
    """What a person sees while a model works, and the question whether the words were understood."""

    def __init__(self, verbose: bool, yes: bool, budget: Any, asked: Any) -> None:
        self._verbose, self._yes, self._budget, self._asked = verbose, yes, budget, asked
        self.noted: Any = None  # where it is also kept

    def confirm(self, understood: Any, target: str) -> bool:
        self.noted.understood(understood, target)
        if self._verbose or not self._yes:
            _show_understood(understood, target, self._asked)
        if self._yes:
            return True
        if not sys.stdin.isatty():
            raise SpecError(
                "nobody can confirm what was understood: there is no terminal",
                hint="read it above, and pass --yes",
                field="yes",
                value=False,
            )
        return typer.confirm("Is that what you ask for?", err=True)

    def attempt(self, sample: int, attempt: Any) -> None:
        self.noted.attempt(sample, attempt)
        if not self._verbose:
            return
        terminal.heading(f"sample {sample + 1}, {attempt.stage} ({attempt.seconds:.1f} s; {self._budget.line()})")
        if not attempt.failed:
            terminal.listing("  passed every gate" + (", with the plainest schedule" if attempt.plain_schedule else ""))
            return
        terminal.listing(f"  passed: {', '.join(attempt.passed) or 'no gate'}")
        terminal.listing(f"  refused by {attempt.failed}:\n" + _indented(attempt.findings))


def _show_understood(understood: Any, target: str, asked: Any) -> None:
    from qimeng_attention.report import show_observed, show_understood, understand
    from qimeng_attention.workflow.observed import observe

    terminal.heading("what was understood")
    console = terminal.page_console()
    if understood.beyond:
        show_observed(console, understood.meaning, observe(understood.spec, asked.reference, asked.framework))
    else:
        show_understood(console, understand(understood.spec))
    if understood.beyond or asked.function is not None:
        terminal.listing("  judged against your function")
    terminal.listing(f"  for {target}" + (f"\n  assumed: {understood.why}" if understood.why else ""))


def _indented(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def new_run(words: str) -> Path:
    """Name the folder of a run that none was named for."""
    slug = "-".join(re.findall(r"[a-z0-9]+", words.lower())[:5])[:60] or "run"
    return Path("runs") / f"{datetime.now():%Y%m%d-%H%M%S}-{slug}"


def _finish(made: Any, folder: Path, budget: Any, given: dict[str, Any]) -> None:
    best, outcome = made.best, made.outcome
    bundle = outcome.folder if outcome is not None else None
    if given["as_json"]:
        terminal.print_json(_json(made, folder, budget))
    elif not made.samples:
        terminal.note("nothing was made: it was not what you ask for")
    elif bundle is not None and given["quiet"]:
        terminal.listing(str(bundle))
    elif bundle is not None:
        terminal.heading("bundle")
        terminal.listing(f"  {bundle}    ({terminal.own_command()} show {bundle})\n  {budget.line()}")
        terminal.listing(f"  run: {folder}    ({terminal.own_command()} show {folder})")
    elif best is None:
        last = made.samples[-1].attempts[-1]
        tried = f"{len(made.samples)} sample{'s' if len(made.samples) > 1 else ''}"
        terminal.print_error(
            QimengError(
                f"no program passed every gate ({tried}; the last one was refused by {last.failed})",
                hint=f"more --samples or --repairs, or read it: {terminal.own_command()} show {folder}",
            ),
            False,
        )
    if outcome is not None:
        for line in outcome.notes:
            terminal.note(line)
    if bundle is None:
        raise typer.Exit(1 if made.samples else 2)


def _json(made: Any, folder: Path, budget: Any) -> dict[str, Any]:
    understood, outcome = made.understood, made.outcome
    return {
        "understood": {
            "spec": understood.spec.model_dump(mode="json"),
            "target": understood.target,
            "beyond": understood.beyond,
            "meaning": understood.meaning,
            "why": understood.why,
        },
        "samples": [
            {
                "solved": s.solved,
                "repairs": s.repairs,
                "attempts": [
                    {"stage": a.stage, "passed": a.passed, "failed": a.failed, "codes": a.codes, "findings": a.findings}
                    for a in s.attempts
                ],
            }
            for s in made.samples
        ],
        "bundle": str(outcome.folder) if outcome is not None and outcome.folder else None,
        "verdict": outcome.results.verdict.to_json() if outcome is not None and outcome.results.verdict else None,
        "spent": budget.line(),
        "run": str(folder),
    }
