"""Draw the speed figure and the README's table from one results file; nothing in either is typed by hand.

    python benchmarks/plot.py                       # write docs/figures/NAME.svg and the table between README's markers
    python benchmarks/plot.py --png out/look.png   # the same picture, to look at
    python benchmarks/plot.py --check               # write nothing, fail if the README's table is stale

The table needs the package only; the figure needs matplotlib (the `report` extra).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from qimeng_attention.bench.results import Results, SpeedRow

ROOT = Path(__file__).resolve().parents[1]
NAME = "ampere_forward_h200"
PEER = "FlashAttention-2"
OURS_COLOUR, PEER_COLOUR = "#1f5fa8", "#b9bec5"
BEGIN, END = "<!-- begin: benchmarks/plot.py -->", "<!-- end: benchmarks/plot.py -->"
PANELS = [(64, "full"), (64, "causal"), (128, "full"), (128, "causal")]


def load(path: Path) -> Results:
    """Read a results file that holds speed rows only."""
    results = Results.load(path)
    if not all(isinstance(row, SpeedRow) for row in results.rows):
        raise SystemExit(f"{path} holds no speed rows")
    return results


def tflops(row: SpeedRow, milliseconds: float) -> float:
    """Count 4 * B * Hq * Sq * Sk * D floating-point operations, half of them for a causal mask."""
    c = row.case
    operations = 2 * c.B * c.Hq * c.Sq * c.Sk * (c.Dqk + c.Dv) * (0.5 if c.mask == "causal" else 1.0)
    return operations / milliseconds / 1e9


def panel(results: Results, dim: int, mask: str) -> list[SpeedRow]:
    """Give the rows of one head dim and mask, by length."""
    rows = [r for r in results.rows if isinstance(r, SpeedRow)]
    chosen = [r for r in rows if (r.case.Dqk, r.case.mask) == (dim, mask)]
    return sorted(chosen, key=lambda r: r.case.Sk)


# ------------------------------------------------------------------ the table


def table(results: Results) -> str:
    """Give the README's table: TFLOP/s of ours and of the peer, and their ratio."""
    heads = [f"D = {dim}, {mask}" for dim, mask in PANELS]
    lines = ["| length | " + " | ".join(heads) + " |", "| ---: |" + " ---: |" * len(PANELS)]
    columns = [panel(results, *p) for p in PANELS]
    for rows in zip(*columns, strict=True):
        cells = [f"{tflops(r, r.ours_ms):.0f} / {tflops(r, r.peers_ms[PEER]):.0f} ({r.ratio:.2f})" for r in rows]
        lines.append(f"| {rows[0].case.Sk:,} | " + " | ".join(cells) + " |")
    everything = [r for column in columns for r in column]
    means = [f"{geometric_mean([r.ratio for r in column]):.3f}" for column in columns]
    lines.append("| geometric mean | " + " | ".join(means) + " |")
    ratios = [r.ratio for r in everything]
    spread, error = (
        max(r.spread for r in everything),
        max(max(r.error_before, r.error_after) for r in everything),
    )
    versions = ", ".join(f"{name} {version}" for name, version in results.packages.items())
    note = (
        f"Each cell: ours / {PEER} in TFLOP/s, and the ratio of the times in brackets.\n"
        f"{len(ratios)} rows, geometric mean {geometric_mean(ratios):.3f}, "
        f"least {min(ratios):.3f}, greatest {max(ratios):.3f}.\n"
        f"Measured on {results.device} on {results.date} (driver {results.driver}, {versions}), bf16, "
        f"{everything[0].case.Hq * everything[0].case.Dqk} / D heads, 16,384 tokens a call, graphs replayed, medians; "
        f"the times of one row spread by at most {spread:.1%}.\n"
        f"Relative error against float32, before and after timing: at most {error:.4f}."
    )
    return "\n".join(lines) + "\n\n" + note


def with_table(readme: str, results: Results) -> str:
    """Give the README with the table between its markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"README.md must hold {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


# ------------------------------------------------------------------ the figure


def figure(results: Results) -> Any:
    """Draw four panels of grouped bars, TFLOP/s by length, each pair with its ratio."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": NAME, "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False}
    import matplotlib.pyplot as plt

    drawn, axes = plt.subplots(2, 2, figsize=(10, 6.4), sharey=True, layout="constrained")
    top = max(tflops(r, r.ours_ms) for r in results.rows if isinstance(r, SpeedRow))
    for ax, (dim, mask) in zip(axes.flat, PANELS, strict=True):
        _panel(ax, panel(results, dim, mask))
        ax.set_title(f"head dim {dim}, {mask}", loc="left", fontweight="bold")
        ax.set_ylim(0, top * 1.12)
    for ax in axes[:, 0]:
        ax.set_ylabel("TFLOP/s")
    for ax in axes[1]:
        ax.set_xlabel("length of queries and keys (16,384 tokens a call)")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    drawn.suptitle(
        f"Attention forward, bf16, on {results.device}: a program for the A100, sm_80 instructions\n"
        f"above each pair: time of {PEER} (PyTorch {results.packages.get('torch', '')}) over ours",
        fontsize=10,
    )
    return drawn


def _panel(ax: Any, rows: list[SpeedRow]) -> None:
    width, places = 0.4, range(len(rows))
    ours, peer = ([tflops(r, ms) for r, ms in pairs] for pairs in _times(rows))
    ax.bar([x - width / 2 for x in places], ours, width, label="generated kernel", color=OURS_COLOUR)
    ax.bar([x + width / 2 for x in places], peer, width, label=PEER, color=PEER_COLOUR)
    for x, row, a, b in zip(places, rows, ours, peer, strict=True):
        ax.text(x, max(a, b) + 6, f"{row.ratio:.2f}", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(list(places), [f"{r.case.Sk:,}" for r in rows])
    ax.grid(axis="y", color="#e4e6e9", linewidth=0.7)
    ax.set_axisbelow(True)


def _times(rows: list[SpeedRow]) -> tuple[list[tuple[SpeedRow, float]], list[tuple[SpeedRow, float]]]:
    return [(r, r.ours_ms) for r in rows], [(r, r.peers_ms[PEER]) for r in rows]


def run(doc: str | None, name: str, marked: Callable[[str, Results], str], drawing: Callable[[Results], Any]) -> None:
    """Write, or check, the figure and the README's table of one results file."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results" / f"{name}.json")
    parser.add_argument("--svg", type=Path, default=ROOT / "docs" / "figures" / f"{name}.svg")
    parser.add_argument("--png", type=Path, help="also write the picture here")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--check", action="store_true", help="write nothing, fail if the table is stale")
    args = parser.parse_args()
    results = load(args.results)
    text = args.readme.read_text("utf-8")
    made = marked(text, results)
    if args.check:
        if made != text:
            sys.exit(f"the table in {args.readme} is stale: run `make docs`")
        return
    args.readme.write_text(made, "utf-8")
    drawn = drawing(results)
    args.svg.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(args.svg, metadata={"Date": None, "Creator": None})
    if args.png:
        drawn.savefig(args.png, dpi=110)


if __name__ == "__main__":
    run(__doc__, NAME, with_table, figure)
