"""The summary of a study as Markdown tables, for documents, and as rows, for a terminal.

Not here: who writes them into a page (benchmarks/tables.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qimeng_attention.study.record import GATES, METHODS
from qimeng_attention.study.summary import STRATA

HEAD = ["method", "stratum", "requests", "samples", "pass@1 before", "pass@1", "pass@k", "k", "repairs"]
COST_HEAD = ["method", "stratum", "tokens in", "tokens out", "USD", "minutes", "minutes a sample, median"]


def cells(summary: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    """List the methods and strata of a summary that have samples, in their order."""
    return [(m, s, summary[m][s]) for m in METHODS for s in STRATA if s in summary.get(m, {})]


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Give the rows of the main table, with intervals; `repairs` is the median of all samples."""
    return [
        [
            method,
            stratum,
            str(c["requests"]),
            str(c["n"]),
            _share(c["pass1_before"], c["pass1_before_interval"]),
            _share(c["pass1"], c["pass1_interval"]),
            _share(c["passk"], c["passk_interval"]),
            str(c["k"]),
            f"{c['repairs_median']:g}",
        ]
        for method, stratum, c in cells(summary)
    ]


def cost_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Give what the samples took; where some are unknown, of how many the number is."""
    fields = (("input_tokens", ",.0f"), ("output_tokens", ",.0f"), ("usd", ".2f"))
    return [
        [
            method,
            stratum,
            *(_amount(c[name], c[f"{name}_unknown"], c["n"], form) for name, form in fields),
            f"{c['minutes']:.1f}",
            f"{c['minutes_median']:.1f}",
        ]
        for method, stratum, c in cells(summary)
    ]


def gate_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Give for each method and stratum how many samples pass each gate, before repair and after the last."""
    found = []
    for method, stratum, c in cells(summary):
        first, last = c["gates"][0], c["gates"][-1]
        shown = [f"{first[g]['passed']} → {last[g]['passed']}" if g in first else "" for g in GATES]
        found.append([method, stratum, str(c["n"]), *shown])
    return found


def kind_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """Give the kinds of failure: attempts that show each, and samples that ended with it, method by method."""
    methods = [m for m in METHODS if m in summary]
    total: dict[str, int] = {}
    counts: dict[str, dict[str, list[int]]] = {}
    for method, _, c in cells(summary):
        for place, field in enumerate(("kinds", "kinds_left")):
            for kind, n in c[field].items():
                counts.setdefault(kind, {}).setdefault(method, [0, 0])[place] += n
                total[kind] = total.get(kind, 0) + (n if field == "kinds" else 0)
    order = sorted(counts, key=lambda kind: (-total[kind], kind))
    return [[kind, *(_pair(counts[kind].get(m)) for m in methods)] for kind in order]


def markdown(summary: Mapping[str, Any]) -> str:
    """Give the tables for a page."""
    methods = [m for m in METHODS if m in summary]
    parts = [
        _table(HEAD, rows(summary)),
        "Samples that pass each gate, before repair → after it:",
        _table(["method", "stratum", "samples", *GATES], gate_rows(summary)),
    ]
    if failures := kind_rows(summary):
        parts += [
            "Kinds of failure: attempts that show it / samples that ended with it.",
            _table(["kind", *methods], failures),
        ]
    parts += ["What it took; minutes are of the model and of the gates.", _table(COST_HEAD, cost_rows(summary))]
    return "\n\n".join(parts)


def _table(head: list[str], body: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _share(value: float, interval: list[float]) -> str:
    return f"{value:.2f} ({interval[0]:.2f}–{interval[1]:.2f})"


def _amount(value: float | None, unknown: int, of: int, form: str) -> str:
    if value is None:
        return "unknown"
    return format(value, form) + (f" ({of - unknown} of {of})" if unknown else "")


def _pair(counts: list[int] | None) -> str:
    return f"{counts[0]} / {counts[1]}" if counts else ""
