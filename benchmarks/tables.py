"""Write the tables of docs/measured.md, docs/flex.md and docs/study.md from the results files; none is typed by hand.

python benchmarks/tables.py            # write them
python benchmarks/tables.py --check    # write nothing, fail if a table is stale
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from qimeng_attention.bench.results import MatrixRow, Results, SpeedRow
from qimeng_attention.study.tables import markdown

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "measured.md"
FLEX = ROOT / "docs" / "flex.md"
STUDY = ROOT / "docs" / "study.md"
RESULTS = ROOT / "benchmarks" / "results"
PROCESSES = ("hopper_forward_h200_process1", "hopper_forward_h200_process2", "hopper_forward_h200")
GOOD = 1.02


def results(name: str) -> Results:
    return Results.load(RESULTS / f"{name}.json")


def rows_of(name: str) -> list[SpeedRow]:
    return [r for r in results(name).rows if isinstance(r, SpeedRow)]


def table(head: list[str], rows: list[list[Any]]) -> str:
    """Make a table; columns of numbers stand at the right."""
    right = [all(isinstance(r[n], float | int) or r[n] == "" for r in rows) for n in range(len(head))]
    lines = [head, ["---:" if r else "---" for r in right]]
    lines += [[f"{x:.3f}" if isinstance(x, float) else str(x) for x in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def origin(name: str) -> str:
    """Say where a table comes from."""
    r = results(name)
    return f"{r.device}, {r.date}, commit `{r.commit[:7]}`, [{name}.json](../benchmarks/results/{name}.json)."


def there(name: str) -> bool:
    """Tell whether a results file was written already."""
    return (RESULTS / f"{name}.json").is_file()


def processes() -> str:
    found = [rows_of(name) for name in PROCESSES]
    rows = []
    for same in zip(*found, strict=True):
        c = same[0].case
        rows.append([c.Dqk, f"{c.Hq}/{c.Hk}", c.mask, c.Sk, *(r.ratio for r in same)])
    good = sum(min(row[4:]) >= GOOD for row in rows)
    head = ["D", "heads", "mask", "length", "process 1", "process 2", "process 3"]
    return f"{table(head, rows)}\n\n{good} rows are at {GOOD} or more in each of the three."


def bounds() -> str:
    """What binds the rows under 1.00, each text once."""
    texts: dict[str, list[str]] = {}
    for r in rows_of(PROCESSES[-1]):
        if r.bound:
            c = r.case
            texts.setdefault(r.bound, []).append(f"D = {c.Dqk}, {c.Hq}/{c.Hk}, {c.mask}, {c.Sk:,} ({r.ratio:.3f})")
    return "\n".join(f"- {'; '.join(cases)}: {text}." for text, cases in texts.items())


def variants() -> str:
    rows = rows_of("hopper_variants_h200")
    peers = sorted({p for r in rows for p in r.peers_ms})
    body = [[r.case.mods, r.ours_ms, *(r.peers_ms.get(p, "") for p in peers), r.ratio] for r in rows]
    return table(["variant", "ours, ms", *(f"{p}, ms" for p in peers), "ratio"], body)


def ablation() -> str:
    """What each choice is worth, program by program."""
    parts = []
    for program, found in results("ablation_hopper_h200").summary["rows"].items():
        shipped, body = found["shipped"]["counts"], []
        for name, row in found.items():
            changed = ", ".join(f"{k} {shipped.get(k, 0)} to {n}" for k, n in row["changed"].items()) or "none"
            costs = [f"{row[f'cost_{length}']:+.1%}" for length in (2048, 16384)]
            if name != "shipped":
                body.append([name, *costs, row["verdict"], changed, row["predicted"]])
        head = ["switched off", "time at 2,048", "time at 16,384", "judge", "what changed in the SASS", "predicted"]
        parts.append(f"**{program}**\n\n{table(head, body)}")
    return "\n\n".join(parts)


def overhead() -> str:
    s = results("call_overhead_h200").summary
    body = [
        ["`f(q, k, v)`", s["eager_us"]],
        ["`f(q, k, v, out=out, lse=lse)`", s["eager_outputs_given_us"]],
        ["a call in a replayed graph", s["graph_host_us"]],
    ]
    return table(["call", "host time less an empty function's, µs"], body)


def serving() -> str:
    rows = []
    for r in (r for r in rows_of("serving_h200") if r.case.kind == "decode"):
        c, moved = r.case, 2 * 2 * r.case.B * r.case.Sk * r.case.Hk * r.case.Dqk  # bytes of K and V, 16 bits each
        speeds = [f"{moved / ms / 1e9:.2f}" for ms in (r.ours_ms, r.peers_ms["FlashAttention-3"])]
        rows.append([c.B, f"{c.Hq}/{c.Hk}", f"{c.Sk:,}", *speeds, r.ratio, r.bound])
    head = ["sequences", "heads", "keys", "ours, TB/s", "FlashAttention-3, TB/s", "ratio", "what binds"]
    return "\n\n".join([table(head, rows), *packed()])


def packed() -> list[str]:
    """Packed sequences, where they were measured."""
    rows = [
        [r.case.mods, f"{r.case.Hq}/{r.case.Hk}", r.ours_ms, r.peers_ms["FlashAttention-3"], r.ratio]
        for r in rows_of("serving_h200")
        if r.case.kind == "varlen"
    ]
    head = ["packed sequences, causal", "heads", "ours, ms", "FlashAttention-3, ms", "ratio"]
    return [table(head, rows)] if rows else []


def caches() -> str:
    """One query a sequence over caches with lengths of entries, in pages or not."""
    rows = rows_of("serving_paged_h200")
    peers = sorted({p for r in rows for p in r.peers_ms})
    body = [[r.case.mods, r.ours_ms, *(r.peers_ms[p] for p in peers), r.ratio] for r in rows]
    return table(["cache", "ours, ms", *(f"{p}, ms" for p in peers), "ratio"], body)


def judged() -> str:
    """What the judge said of kernels that ran on a GPU."""
    rows = []
    for name, what in JUDGED.items():
        s = results(name).summary
        link = f"[{name}.json](../benchmarks/results/{name}.json)"
        rows.append([what, s["bundles"], s["accepted"], f"{s['shapes']:,}", f"{s['checks']:,}", link])
    return table(["programs", "kernels", "accepted", "configurations", "checks", "results"], rows)


def flex_mods() -> str:
    """What came of FlexAttention's callables: verdicts, times, refusals and what was left out."""
    s, rows = results("flex_mods_h200").summary, {r.case.mods: r for r in rows_of("flex_mods_h200")}
    peers = sorted({p for r in rows.values() for p in r.peers_ms}, reverse=True)
    body: list[list[Any]] = []
    for name, tensors in s["tensors"].items():
        row = rows.get(name)
        verdicts = [s[where].get(name, {}).get("verdict", "") for where in ("verdicts_cpu", "verdicts_gpu")]
        times = [row.ours_ms, *(row.peers_ms.get(p, "") for p in peers), row.ratio] if row else [""] * (len(peers) + 2)
        captured = ", ".join(f"{n} {what}" for n, what in tensors.items())
        body.append([name.replace("_", " "), captured, *verdicts, *times])
    judges = ["judge, CPU", "judge, H200"]
    head = ["operator", "captured tensors", *judges, "ours, ms", *(f"{p}, ms" for p in peers), "ratio"]
    count = f"{s['mods']} operators, {s['accepted']} accepted; ratio: geometric mean {s['geomean']:.3f} of {s['rows']}."
    refused = [f"- {n.replace('_', ' ')}: {why}." for n, why in s["refused"].items()]
    reasons: dict[str, list[str]] = {}
    for name, found in s["left_out"].items():
        for peer, why in found.items():
            reasons.setdefault(f"{peer}: {why}", []).append(name.replace("_", " "))
    left = [f"- {why.rstrip('.')} ({', '.join(names)})." for why, names in reasons.items()]
    parts = [table(head, body), count, "Refused, by name:", "\n".join(refused)]
    return "\n\n".join([*parts, "Left out of the times:", "\n".join(left)] if left else parts)


def study(name: str = "study") -> str:
    """What came of a round of the study: pass@k, gates, kinds of failure, what it took."""
    found = results(name).summary
    return f"{markdown(found)}\n\nModel: {found['facts']['model']}."


def study_round1() -> str:
    return study("study_round1")


def study_kernels(name: str = "study_kernels_h200") -> str:
    """Write what the kernels of a trial do on the GPU, by method, beside FlexAttention."""
    found = results(name).summary
    names = list(dict.fromkeys(n for r in found["rows"] for n in [*r["verdict"], *r.get("tflops", {})]))
    rows = []
    for r in found["rows"]:
        verdicts = ", ".join(f"{m} {v}" for m, v in r["verdict"].items() if v != "accepted") or "accepted"
        rows.append([r["request"], r["stratum"], verdicts, *(_rate(r, n) for n in names)])
    head = ["request", "stratum", "judge", *(f"{n}, TFLOP/s" for n in names)]
    count = f"{found['accepted']} of {found['kernels']} kernels accepted"
    return f"{table(head, rows)}\n\n{count}; {found['length']:,} keys, {found['tokens']:,} tokens."


def _rate(row: dict[str, Any], name: str) -> str:
    rate = row.get("tflops", {}).get(name)
    return "" if rate is None else f"{rate:.0f}"


def matrix() -> str:
    """Cells that the judge accepted, on the CPU and on the GPU; and what spills."""
    cells = [r for r in results("matrix").rows if isinstance(r, MatrixRow)]
    dims = sorted({(r.case.Dqk, r.case.Dv) for r in cells})
    lines: dict[tuple[str, str], dict[tuple[int, int], list[MatrixRow]]] = {}
    for r in cells:
        lines.setdefault((r.case.target, r.case.dtype), {}).setdefault((r.case.Dqk, r.case.Dv), []).append(r)
    body = [[*key, *(_accepted(found.get(d, [])) for d in dims)] for key, found in lines.items()]
    head = ["target", "type", *(f"D = {a}" if a == b else f"{a}/{b}" for a, b in dims)]
    spilling = {r.program: r for r in cells if r.spills > 0}.values()
    spills = [f"{r.case.target} {r.case.dtype} D = {r.case.Dqk}, {r.case.mask}: {r.spills} bytes" for r in spilling]
    listed = f"Programs with spills: {'; '.join(spills)}." if spills else "No program spills."
    s = results("matrix").summary
    counts = f"{s['programs']} programs, compiled in {s['compile_s, 95th percentile']:.1f} s at the 95th percentile."
    note = f"\n{s['note'][0].upper()}{s['note'][1:]}." if s.get("note") else ""
    return f"{table(head, body)}\n\n{listed}\n{counts}{note}"


def _accepted(rows: list[MatrixRow]) -> str:
    both = sum(r.verdict_cpu == r.verdict_gpu == "accepted" for r in rows)
    return f"{both} of {len(rows)}"


def improved() -> str:
    """Write every round of every program, dropped ones too, and what they gain together."""
    blocks = []
    for name, p in results("improve_h200").summary["programs"].items():
        sizes = ", ".join(f"{size} = {value}" for size, value in p["sizes"].items())
        rows = [[r["round"], "; ".join(r["changes"]).replace("|", "\\|"), _outcome(r)] for r in p["rounds"]]
        low, high = p["interval"] or (1.0, 1.0)
        total = f"{p['gain']:.3f} times as fast in all ({low:.3f} to {high:.3f})" if p["gain"] != 1 else "nothing kept"
        head = f"**{name}**, {sizes}: {p['start_ms']:g} ms before; {total}"
        blocks.append(f"{head}\n\n{table(['round', 'proposed', 'measured'], rows)}")
    return "\n\n".join(blocks)


def _outcome(r: dict[str, Any]) -> str:
    if "ratio" not in r:
        return r["outcome"].replace("|", "\\|").split("hint:")[0].strip()
    low, high = r["interval"]
    return f"{r['ratio']:.3f} ({low:.3f} to {high:.3f}), {'kept' if r['kept'] else 'dropped'}"


JUDGED = {
    "judge_hopper_h200": "for the H200, head dims 64, 128, 256",
    "judge_decode_h200": "for the H200, one or three queries",
    "judge_head_dims_h200": "for the H200, head dims that are no multiple of 64, or unequal",
    "judge_ampere_h200": "for the A100, built for sm_90",
    "judge_turing_h200": "for the T4, built for sm_90",
    "judge_varlen_h200": "for the H200, packed sequences",
    "judge_varlen_ampere_h200": "for the A100, built for sm_90, packed sequences",
    "judge_varlen_turing_h200": "for the T4, built for sm_90, packed sequences",
    "judge_caches_h200": "for the H200, lengths of entries and pages",
    "judge_caches_ampere_h200": "for the A100, built for sm_90, lengths of entries and pages",
    "judge_weights_hopper_h200": "for the H200, sinks and weights other than softmax",
    "judge_weights_ampere_h200": "for the A100, built for sm_90, sinks and weights other than softmax",
    "judge_weights_turing_h200": "for the T4, built for sm_90, sinks and weights other than softmax",
}
TABLES: dict[str, tuple[Callable[[], str], str]] = {
    "processes": (processes, "hopper_forward_h200"),
    "bounds": (bounds, "hopper_forward_h200"),
    "variants": (variants, "hopper_variants_h200"),
    "ablation": (ablation, "ablation_hopper_h200"),
    "overhead": (overhead, "call_overhead_h200"),
    "serving": (serving, "serving_h200"),
    "caches": (caches, "serving_paged_h200"),
    "improve": (improved, "improve_h200"),
    "judged": (judged, "judge_hopper_h200"),
    "matrix": (matrix, "matrix"),
}
PAGES = {
    PAGE: TABLES,
    FLEX: {"flex_mods": (flex_mods, "flex_mods_h200")},
    STUDY: {
        "study_round1": (study_round1, "study_round1"),
        "study_kernels": (study_kernels, "study_kernels_h200"),
        "study": (study, "study"),
        "study_kernels_round2": (partial(study_kernels, "study_kernels_round2_h200"), "study_kernels_round2_h200"),
    },
}


def with_tables(text: str, page: Path = PAGE) -> str:
    """Give a page with every table between its markers."""
    for name, (make, source) in PAGES[page].items():
        begin, end = f"<!-- begin: {name} -->", f"<!-- end: {name} -->"
        if text.count(begin) != 1 or text.count(end) != 1:
            raise SystemExit(f"{page} must hold {begin} and {end} once each")
        before, rest = text.split(begin)
        found = f"{make()}\n\n{origin(source)}" if there(source) else "Not measured yet."
        text = f"{before}{begin}\n{found}\n{end}{rest.split(end)[1]}"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing, fail if a table is stale")
    args = parser.parse_args()
    for page in PAGES:
        text = page.read_text("utf-8")
        made = with_tables(text, page)
        if args.check and made != text:
            sys.exit(f"a table of {page} is stale: run `make docs`")
        if not args.check:
            page.write_text(made, "utf-8")


if __name__ == "__main__":
    main()
