"""Pictures of a study: pass@1 with intervals, repairs, and kinds of failure. Needs matplotlib (the `report` extra).

Not here: the numbers (summary.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qimeng_attention.errors import EnvironmentMissing
from qimeng_attention.study.record import METHODS, MOST_REPAIRS
from qimeng_attention.study.tables import cells

COLOURS = {"known": "#b9bec5", "unseen": "#1f5fa8"}
METHOD_COLOURS = dict(zip(METHODS, ("#1f5fa8", "#e08a1e", "#4d9a6a", "#8c3b4a", "#7a68a6"), strict=True))
MOST_KINDS = 10
SETTINGS: Any = {"svg.hashsalt": "study", "svg.fonttype": "path", "font.size": 9}  # the same file from the same numbers
SETTINGS |= {"axes.spines.top": False, "axes.spines.right": False}


def draw(summary: Mapping[str, Any], path: Path) -> Path:
    """Draw the three panels into one file, whose ending names the format.

    Raises:
        EnvironmentMissing: matplotlib is not installed, or cannot write such a file.
    """
    mpl = _matplotlib()
    with mpl.rc_context(SETTINGS):
        try:
            figure_of(summary).savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        except ValueError as error:
            raise EnvironmentMissing(f"cannot write {path}: {error}", hint="name a file .svg, .png or .pdf") from None
    return path


def figure_of(summary: Mapping[str, Any]) -> Any:
    """Draw the three panels.

    Raises:
        EnvironmentMissing: matplotlib is not installed.
    """
    _matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.6), layout="constrained")
    for ax, panel in zip(figure.subplots(1, 3), (_passes, _repairs, _kinds), strict=True):
        panel(ax, summary)
    return figure


def _matplotlib() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise EnvironmentMissing("matplotlib is not installed", hint="install the `report` extra") from None
    return mpl


def _places(summary: Mapping[str, Any]) -> tuple[list[str], list[tuple[float, str, Mapping[str, Any]]]]:
    """Give the methods, and each cell's place on an axis of methods."""
    methods: list[str] = [m for m in METHODS if m in summary]
    found = cells(summary)
    shift = {"known": -0.2, "unseen": 0.2} if len({s for _, s, _ in found}) > 1 else {"known": 0.0, "unseen": 0.0}
    return methods, [(methods.index(m) + shift[s], s, c) for m, s, c in found]


def _methods(ax: Any, methods: list[str]) -> None:
    ax.set_xticks(range(len(methods)), methods, fontsize=8)
    ax.set_xlim(-0.6, len(methods) - 0.4)
    ax.grid(axis="y", color="#e4e6e9", linewidth=0.7)
    ax.set_axisbelow(True)


def _passes(ax: Any, summary: Mapping[str, Any]) -> None:
    methods, found = _places(summary)
    for x, stratum, c in found:
        low, high = c["pass1_interval"]
        value = c["pass1"]
        label = stratum if stratum not in ax.get_legend_handles_labels()[1] else None
        ax.bar(x, value, 0.36, color=COLOURS[stratum], label=label)
        ax.errorbar(x, value, [[value - low], [high - value]], color="#333333", capsize=3, linewidth=1)
        ax.plot([x - 0.18, x + 0.18], [c["pass1_before"]] * 2, color="#d1495b", linewidth=2)
    _methods(ax, methods)
    ax.set_ylim(0, 1.02)
    ax.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.08), ncols=2)
    ax.set_title("pass@1 after repair; red: before it", loc="left", fontweight="bold")


def _repairs(ax: Any, summary: Mapping[str, Any]) -> None:
    for method, stratum, c in cells(summary):
        shares = [of["judged"]["passed"] / of["judged"]["of"] if "judged" in of else 0.0 for of in c["gates"]]
        style = {"color": METHOD_COLOURS[method], "linestyle": "-" if stratum == "unseen" else ":"}  # type: ignore[index]
        ax.plot(range(1 + MOST_REPAIRS), shares, marker="o", markersize=3, label=f"{method}, {stratum}", **style)
    ax.set_xticks(range(1 + MOST_REPAIRS))
    ax.set_xlabel("repairs")
    ax.set_ylim(-0.02, 1.02)
    ax.grid(axis="y", color="#e4e6e9", linewidth=0.7)
    ax.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3)
    ax.set_title("share of samples accepted", loc="left", fontweight="bold")


def _kinds(ax: Any, summary: Mapping[str, Any]) -> None:
    methods = [m for m in METHODS if m in summary]
    counts: dict[str, dict[str, int]] = {}
    for method, _, c in cells(summary):
        for kind, n in c["kinds"].items():
            by_method = counts.setdefault(kind, {})
            by_method[method] = by_method.get(method, 0) + n
    order = sorted(counts, key=lambda kind: (sum(counts[kind].values()), kind))[-MOST_KINDS:]
    left = [0] * len(order)
    for method in methods:
        values = [counts[kind].get(method, 0) for kind in order]
        ax.barh(range(len(order)), values, left=left, label=method, color=METHOD_COLOURS[method])
        left = [a + b for a, b in zip(left, values, strict=True)]
    ax.set_yticks(range(len(order)), order)
    ax.set_title("attempts that failed, by kind", loc="left", fontweight="bold")
    if order:
        ax.legend(frameon=False, fontsize=7, loc="lower right")
