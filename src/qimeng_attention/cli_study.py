"""Commands of a study: requests answered by models, counted.

Not here: the stages (cli.py), the numbers (study/).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qimeng_attention import terminal
from qimeng_attention.cli_guard import Json, guarded

app = typer.Typer(no_args_is_help=True, help="Compare methods and models: requests in words, answered and judged.")


@app.callback()
def study() -> None:
    """Compare methods and models: requests in words, answered and judged."""


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
