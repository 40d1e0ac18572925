"""Draw the figure and the README's table of the H200 programs from their results file; nothing is typed by hand.

python benchmarks/plot_hopper.py                       # write docs/figures/NAME.svg and the README's table
python benchmarks/plot_hopper.py --png out/look.png   # the same picture, to look at
python benchmarks/plot_hopper.py --check               # write nothing, fail if the README's table is stale
"""

from __future__ import annotations

import sys
from pathlib import Path
from statistics import geometric_mean
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from plot import OURS_COLOUR, run, tflops

from qimeng_attention.bench.results import Results, SpeedRow

NAME = "hopper_forward_h200"
BEGIN, END = "<!-- begin: benchmarks/plot_hopper.py -->", "<!-- end: benchmarks/plot_hopper.py -->"
COLOURS = ("#b9bec5", "#8d949e", "#d9c8a9")
PEERS = ("FlashAttention-3", "FlashAttention-4", "cuDNN")


def rows_of(results: Results) -> list[SpeedRow]:
    """Give the rows, head dim by head dim."""
    rows = [r for r in results.rows if isinstance(r, SpeedRow)]
    return sorted(rows, key=lambda r: (r.case.Hq != r.case.Hk, r.case.Dqk, r.case.mask != "full", r.case.Sk))


def peers_of(results: Results) -> list[str]:
    """Give the peers that were measured."""
    measured = {p for r in rows_of(results) for p in r.peers_ms}
    return [p for p in PEERS if p in measured]


def table(results: Results) -> str:
    """Give the README's table: TFLOP/s of ours and of each peer, and the best peer's time over ours."""
    peers, rows = peers_of(results), rows_of(results)
    lines = [
        "| D | heads | mask | length | ours | " + " | ".join(peers) + " | ratio |",
        "| ---: | ---: | --- | ---: | ---: |" + " ---: |" * len(peers) + " ---: |",
    ]
    for r in rows:
        c = r.case
        speeds = [f"{tflops(r, r.peers_ms[p]):.0f}" for p in peers]
        lines.append(
            f"| {c.Dqk} | {c.Hq}/{c.Hk} | {c.mask} | {c.Sk:,} | {tflops(r, r.ours_ms):.0f} | {' | '.join(speeds)} "
            f"| {r.ratio:.3f} |"
        )
    ratios = [r.ratio for r in rows]
    left_out = [p for p in PEERS if p not in peers]
    versions = ", ".join(f"{name} {version}" for name, version in results.packages.items())
    note = (
        f"Speeds in TFLOP/s; the ratio is the best peer's time over ours.\n"
        f"{len(rows)} rows, geometric mean {geometric_mean(ratios):.3f}, least {min(ratios):.3f}, "
        f"greatest {max(ratios):.3f}."
        + (f" Not measured here: {', '.join(left_out)}." if left_out else "")
        + f"\nMeasured on {results.device} on {results.date} (driver {results.driver}, {versions}), bf16, 16,384 "
        f"tokens a call, graphs replayed, medians; the times of one row spread by at most "
        f"{max(r.spread for r in rows):.1%}.\n"
        f"Relative error against float32, before and after timing: at most "
        f"{max(max(r.error_before, r.error_after) for r in rows):.4f}."
    )
    return "\n".join(lines) + "\n\n" + note


def with_table(readme: str, results: Results) -> str:
    """Give the README with the table between its markers."""
    if readme.count(BEGIN) != 1 or readme.count(END) != 1:
        raise SystemExit(f"README.md must hold {BEGIN} and {END} once each")
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{table(results)}\n{END}{rest.split(END)[1]}"


def figure(results: Results) -> Any:
    """Draw a panel a head dim: TFLOP/s of ours and of the peers, with the ratio above each group."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams |= {"svg.hashsalt": NAME, "svg.fonttype": "path", "font.size": 9, "axes.spines.top": False}
    mpl.rcParams |= {"axes.spines.right": False}
    import matplotlib.pyplot as plt

    rows, peers = rows_of(results), peers_of(results)
    groups = [[r for r in rows if r.case.Dqk == dim and r.case.Hq == r.case.Hk] for dim in (64, 128, 256)]
    groups.append([r for r in rows if r.case.Hq != r.case.Hk])
    drawn, axes = plt.subplots(2, 2, figsize=(11, 6.6), sharey=True, layout="constrained")
    for ax, found in zip(axes.flat, groups, strict=True):
        c = found[0].case
        _panel(ax, found, peers)
        ax.set_title(f"head dim {c.Dqk}, {c.Hq}/{c.Hk} heads", loc="left", fontweight="bold")
    for ax in axes[:, 0]:
        ax.set_ylabel("TFLOP/s")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    drawn.suptitle(
        f"Attention forward, bf16, on {results.device}: programs for the H200 (roles, TMA, wgmma)\n"
        "above each group: time of the best peer over ours",
        fontsize=10,
    )
    return drawn


def _panel(ax: Any, rows: list[SpeedRow], peers: list[str]) -> None:
    width = 0.8 / (1 + len(peers))
    series = [("generated kernel", OURS_COLOUR, [tflops(r, r.ours_ms) for r in rows])]
    series += [(p, COLOURS[n], [tflops(r, r.peers_ms[p]) for r in rows]) for n, p in enumerate(peers)]
    for n, (label, colour, values) in enumerate(series):
        ax.bar([x - 0.4 + (n + 0.5) * width for x in range(len(rows))], values, width, label=label, color=colour)
    for x, row in enumerate(rows):
        top = max(values[x] for _, _, values in series)
        ax.text(x, top + 6, f"{row.ratio:.2f}", ha="center", va="bottom", fontsize=8)
    ax.set_xticks(range(len(rows)), [f"{r.case.mask}\n{r.case.Sk:,}" for r in rows], fontsize=8)
    ax.grid(axis="y", color="#e4e6e9", linewidth=0.7)
    ax.set_axisbelow(True)


if __name__ == "__main__":
    run(__doc__, NAME, with_table, figure)
