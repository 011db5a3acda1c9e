"""Step 5: compare a result with a base result, output by output, and their latency.

    python summarize.py -i RESULT -b BASE_RESULT [-o DIR] [--max-plan-error 0.05 ...]

Prints a table and writes summary.json and summary.md. Exit status: 0 all limits kept, 1 a limit broken, 2 bad input.
"""

import argparse
import json
import math
import pathlib
import sys
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Column, Table

from errors import UniADError, one_line_errors
from report.compare import METRICS, STAGES, Metric, Result, compare, load_result, summarize_latency
from report.output import whole_file

RATIO_FLAG = "--max-latency-ratio"


def flag_of(metric: Metric) -> str:
    """The command line flag of a metric's limit."""
    return f"--{'min' if metric.is_share else 'max'}-{metric.name.replace('_', '-')}"


def limit_value(text: str) -> float:
    """A limit from the command line: a number that is not negative."""
    value = float(text)
    if not value >= 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not a limit: give a number from 0 up")
    return value


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare a result of run.py with a base result (usually the PyTorch executor's).",
        epilog="Exit status: 0 all limits kept, 1 a limit broken, 2 bad input.",
    )
    parser.add_argument("-i", "--input", type=pathlib.Path, required=True, metavar="RESULT", help="result folder")
    parser.add_argument("-b", "--base", type=pathlib.Path, required=True, metavar="BASE_RESULT", help="base result")
    parser.add_argument("-o", "--output", type=pathlib.Path, metavar="DIR", help="where to write (default: RESULT)")
    parser.add_argument(
        "--worst",
        action="store_true",
        help="hold the largest single error and each frame's share to the limits, not the means of the run",
    )
    parser.add_argument(
        "--warmup", type=int, default=1, metavar="N", help="frames left out of the latency at the start (default 1)"
    )
    limits = parser.add_argument_group(
        "limits",
        "Errors are means over matched objects, shares are pooled over all frames. A default of 'none' means the "
        "quantity is only shown. Where neither result has anything to measure, a limit counts as kept.",
    )
    for metric in METRICS:
        default = "none" if metric.limit is None else f"{metric.limit:g}"
        unit = f", {metric.unit}" if metric.unit and metric.unit != "score" else ""
        text = f"{metric.title}{unit} (default {default})"
        limits.add_argument(flag_of(metric), type=limit_value, default=metric.limit, metavar="X", help=text)
    text = "p50 of the whole frame, result over base; needs both latency.json (default none)"
    limits.add_argument(RATIO_FLAG, type=limit_value, metavar="X", help=text)
    return parser.parse_args(arguments)


def check_limits(metrics: dict[str, dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per metric: name, title, unit, mean, worst, frame, count, flag, limit and `kept` (None: no limit)."""
    rows = []
    for metric in METRICS:
        flag, entry = flag_of(metric), metrics[metric.name]
        limit = getattr(options, flag[2:].replace("-", "_"))
        value = entry["worst"] if options.worst else entry["mean"]
        kept = None
        if limit is not None:
            kept = value is None or (value >= limit if metric.is_share else value <= limit)
        rows.append({"name": metric.name, "title": metric.title, **entry, "flag": flag, "limit": limit, "kept": kept})
    return rows


def compare_latency(result: Result, base: Result, options: argparse.Namespace) -> dict[str, Any]:
    """Milliseconds per stage of both results, and the ratio of their p50.

    Where a latency.json is missing its side is None. Raises UniADError where a limit needs one that is missing.
    """
    sides: dict[str, Any] = {}
    for name, side in (("result", result), ("base", base)):
        sides[name] = None if side.latency is None else summarize_latency(side.latency, options.warmup)
        if side.latency is None and options.max_latency_ratio is not None:
            raise UniADError(f"{RATIO_FLAG} needs {side.path / 'latency.json'}, which is missing")
    ratio = None
    if sides["result"] and sides["base"]:
        ratio = {
            stage: sides["result"][stage]["p50"] / sides["base"][stage]["p50"] if sides["base"][stage]["p50"] else None
            for stage in STAGES
        }
    limit = options.max_latency_ratio
    kept = None if limit is None else bool(ratio and ratio["whole"] is not None and ratio["whole"] <= limit)
    return {**sides, "ratio_p50": ratio, "warmup_frames": options.warmup, "limit": limit, "kept": kept}


# --- texts ---


def number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}" if value >= 1e-3 or value == 0 else f"{value:.1e}"
    return f"{text} {unit}" if unit and unit != "score" else text


def metric_cells(row: dict[str, Any]) -> list[str]:
    limit = "" if row["limit"] is None else f"{'>=' if row['unit'] == '' else '<='} {row['limit']:g}"
    verdict = {None: "", True: "ok", False: "BROKEN"}[row["kept"]]
    perfect = 1.0 if row["unit"] == "" else 0.0
    frame = "-" if row["worst"] in (None, perfect) else row["frame"]
    cells = [row["title"], number(row["mean"], row["unit"]), number(row["worst"], row["unit"]), frame]
    return [*cells, str(row["count"]), limit, verdict]


def latency_cells(latency: dict[str, Any]) -> list[list[str]]:
    rows = []
    for stage in STAGES:
        cells = [stage]
        for side in ("result", "base"):
            stats = latency[side]
            cells += [f"{stats[stage][k]:.2f}" if stats else "-" for k in ("p50", "p90", "p99", "mean")]
        ratio = latency["ratio_p50"][stage] if latency["ratio_p50"] else None
        rows.append([*cells, "-" if ratio is None else f"{ratio:.3f}"])
    return rows


METRIC_HEADS = ("output", "mean / share", "worst", "worst frame", "count", "limit", "")
LATENCY_HEADS = ("ms", "p50", "p90", "p99", "mean", "base p50", "base p90", "base p99", "base mean", "p50 ratio")


def notes_of(summary: dict[str, Any]) -> list[str]:
    """What the reader has to know beside the tables."""
    latency = summary["latency"]
    notes = [f"{summary[side]['path']}: no latency.json" for side in ("result", "base") if latency[side] is None]
    if latency["result"] or latency["base"]:
        notes.append(f"latency: frames left out at the start of each run: {latency['warmup_frames']}")
    if latency["kept"] is False:
        notes.append(f"BROKEN: whole frame, p50 ratio above {latency['limit']:g}")
    held = "the worst frame" if summary["worst"] else "the whole run (mean, pooled share)"
    notes.append(f"limits hold for {held}; '-': nothing to measure in either result")
    return notes


def verdict_of(summary: dict[str, Any]) -> str:
    broken = [row["title"] for row in summary["metrics"] if row["kept"] is False]
    if summary["latency"]["kept"] is False:
        broken.append("latency ratio")
    return f"BROKEN: {'; '.join(broken)}" if broken else "all limits kept"


def markdown(summary: dict[str, Any]) -> str:
    def table(heads, rows) -> list[str]:
        lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        return lines + ["| " + " | ".join(row) + " |" for row in rows]

    parts = [f"# Summary: {verdict_of(summary)}", ""]
    for side in ("result", "base"):
        run = summary[side]["run"]
        facts = {key: run[key] for key in ("executor", "dtype", "device", "config") if isinstance(run.get(key), str)}
        detail = ", ".join(f"{key} {value}" for key, value in facts.items())
        parts.append(f"- {side}: `{summary[side]['path']}`{f' ({detail})' if detail else ''}")
    parts += [f"- frames: {summary['frames']}", "", *table(METRIC_HEADS, map(metric_cells, summary["metrics"])), ""]
    if summary["latency"]["result"] or summary["latency"]["base"]:
        parts += [*table(LATENCY_HEADS, latency_cells(summary["latency"])), ""]
    return "\n".join([*parts, *(f"- {note}" for note in notes_of(summary)), ""])


def print_tables(console: Console, summary: dict[str, Any]) -> None:
    """The same on the terminal, broken limits in red."""
    title = f"{summary['result']['path']} against {summary['base']['path']}, {summary['frames']} frames"
    shown = (0, 1, 2, 5, 6)  # what fits in 80 columns
    table = Table(*(METRIC_HEADS[i] for i in shown), title=title, title_justify="left", box=box.SIMPLE)
    for row in summary["metrics"]:
        cells = metric_cells(row)
        table.add_row(*(cells[i] for i in shown), style="bold red" if row["kept"] is False else None)
    console.print(table)
    if summary["latency"]["result"] or summary["latency"]["base"]:
        table = Table(
            Column("ms", no_wrap=True),
            *LATENCY_HEADS[1:],
            title="latency per frame",
            title_justify="left",
            box=box.SIMPLE,
        )
        for cells in latency_cells(summary["latency"]):
            table.add_row(*cells)
        console.print(table)
    for note in notes_of(summary):
        console.print(note, markup=False, highlight=False)
    verdict = verdict_of(summary)
    console.print(verdict, style="bold red" if verdict.startswith("BROKEN") else "bold green", markup=False)


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if options.warmup < 0:
        raise UniADError(f"--warmup {options.warmup}: give 0 or more")
    result, base = load_result(options.input, "result"), load_result(options.base, "base result")
    console = Console(stderr=True)
    shown = track(result.frames, "comparing frames", console=console, transient=True, disable=not console.is_terminal)
    rows = check_limits(compare(result, base, shown), options)
    summary = {
        "result": {"path": str(options.input), "run": result.run},
        "base": {"path": str(options.base), "run": base.run},
        "frames": len(result.frames),
        "worst": options.worst,
        "metrics": rows,
        "latency": compare_latency(result, base, options),
    }
    summary["passed"] = verdict_of(summary) == "all limits kept"
    folder = options.output or options.input
    with whole_file(folder / "summary.json") as part:
        part.write_text(json.dumps(summary, indent=1, allow_nan=False) + "\n")
    with whole_file(folder / "summary.md") as part:
        part.write_text(markdown(summary))
    print_tables(Console(), summary)
    print(f"written: {folder / 'summary.json'}, {folder / 'summary.md'}")
    return 0 if summary["passed"] else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
