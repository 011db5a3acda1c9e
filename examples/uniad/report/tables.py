"""The summary as texts: cells of its tables, Markdown, and the terminal's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Column, Table

from report.compare import STAGES

FEW_SCENES = 10  # below this many, scores are noisy
METRIC_HEADS = ("output", "mean / share", "worst", "worst frame", "count", "limit", "")
SCORE_HEADS = ("task", "score", "result", "base", "difference", "max drop", "")
LATENCY_HEADS = ("ms", "p50", "p90", "p99", "mean", "base p50", "base p90", "base p99", "base mean", "p50 ratio")
KEPT = "all limits kept"


def number(value: float | None, unit: str) -> str:
    if value is None:
        return "-"
    text = f"{value:.4f}" if value >= 1e-3 or value == 0 else f"{value:.1e}"
    return f"{text} {unit}" if unit and unit != "score" else text


def _verdict(kept: bool | None) -> str:
    return {None: "", True: "ok", False: "BROKEN"}[kept]


def metric_cells(row: dict[str, Any]) -> list[str]:
    limit = "" if row["limit"] is None else f"{'>=' if row['unit'] == '' else '<='} {row['limit']:g}"
    perfect = 1.0 if row["unit"] == "" else 0.0
    frame = "-" if row["worst"] in (None, perfect) else row["frame"]
    cells = [row["title"], number(row["mean"], row["unit"]), number(row["worst"], row["unit"]), frame]
    return [*cells, str(row["count"]), limit, _verdict(row["kept"])]


def score_cells(row: dict[str, Any]) -> list[str]:
    def signed(value: float | None) -> str:
        if value is None:
            return "-"
        return "0" if value == 0 else f"{value:+.4f}" if abs(value) >= 5e-5 else f"{value:+.1e}"

    values = [("-" if row[side] is None else f"{row[side]:.4f}") for side in ("result", "base")]
    unit = f" {row['unit']}" if row["unit"] else ""
    better = "up" if row["more_is_better"] else "down"
    limit = "" if row["max_drop"] is None else f"{row['max_drop']:g}"
    name = f"{row['name']} ({better}){unit and ',' + unit}"
    return [row["task"], name, *values, signed(row["difference"]), limit, _verdict(row["kept"])]


def latency_cells(latency: dict[str, Any]) -> list[list[str]]:
    def milliseconds(value: float) -> str:
        return f"{value:.2f}" if value < 1000 else f"{value:.0f}"

    rows = []
    for stage in STAGES:
        cells = [stage]
        for side in ("result", "base"):
            stats = latency[side]
            cells += [milliseconds(stats[stage][k]) if stats else "-" for k in ("p50", "p90", "p99", "mean")]
        ratio = latency["ratio_p50"][stage] if latency["ratio_p50"] else None
        rows.append([*cells, "-" if ratio is None else f"{ratio:.3f}"])
    return rows


def notes_of(summary: dict[str, Any]) -> list[str]:
    """What the reader has to know beside the tables."""
    latency, truth = summary["latency"], summary["ground_truth"]
    notes = list(summary["notes"])
    if truth is not None:
        facts = f"{truth['scenes']} scene{'s' * (truth['scenes'] != 1)}, {truth['frames']} keyframes"
        notes.append(f"scores against ground truth {truth['root']}: {facts}, {truth['boxes']} annotated objects")
        if truth["scenes"] < FEW_SCENES:
            notes.append(
                f"NOISY: {facts} are too few for a figure to be published or compared with the full validation split; "
                "read differences, and small ones not at all. Classes that do not occur count as 0 in NDS and mAP, but "
                "not in mAP-present (docs/metrics.md)"
            )
    notes += [f"{summary[side]['path']}: no latency.json" for side in ("result", "base") if latency[side] is None]
    if latency["result"] or latency["base"]:
        notes.append(f"latency: frames left out at the start of each run: {latency['warmup_frames']}")
    if latency["kept"] is False:
        notes.append(f"BROKEN: whole frame, p50 ratio above {latency['limit']:g}")
    held = "the worst frame" if summary["worst"] else "the whole run (mean, pooled share)"
    notes.append(f"limits hold for {held}; '-': nothing to measure")
    return notes


def verdict_of(summary: dict[str, Any]) -> str:
    broken = [row["title"] for row in summary["metrics"] if row["kept"] is False]
    broken += [row["name"] for row in summary["scores"] if row["kept"] is False]
    if summary["latency"]["kept"] is False:
        broken.append("latency ratio")
    return f"BROKEN: {'; '.join(broken)}" if broken else KEPT


def facts_of(run: dict[str, Any]) -> dict[str, str]:
    """What a run ran on, as far as its run.json says."""
    engine = (run.get("identity") or {}).get("engine") or {}
    names = ("kind", "executor", "dtype", "device", "torch", "tensorrt")
    facts = {name: engine.get(name, run.get(name)) for name in names}
    facts["model"] = (run.get("config") or {}).get("name") if isinstance(run.get("config"), dict) else None
    return {name: str(value) for name, value in facts.items() if isinstance(value, str | int | float)}


def markdown(summary: dict[str, Any]) -> str:
    def table(heads: Iterable[str], rows: Iterable[list[str]]) -> list[str]:
        heads = list(heads)
        lines = ["| " + " | ".join(heads) + " |", "|" + " --- |" * len(heads)]
        return [*lines, *("| " + " | ".join(row) + " |" for row in rows), ""]

    parts = [f"# Summary: {verdict_of(summary)}", ""]
    for side in ("result", "base"):
        detail = ", ".join(f"{key} {value}" for key, value in facts_of(summary[side]["run"]).items())
        parts.append(f"- {side}: `{summary[side]['path']}`{f' ({detail})' if detail else ''}")
    parts += [f"- frames: {summary['frames']}", ""]
    if summary["scores"]:
        parts += ["## Five tasks against ground truth", "", *table(SCORE_HEADS, map(score_cells, summary["scores"]))]
    parts += ["## Result against base", "", *table(METRIC_HEADS, map(metric_cells, summary["metrics"]))]
    if summary["latency"]["result"] or summary["latency"]["base"]:
        parts += ["## Latency per frame", "", *table(LATENCY_HEADS, latency_cells(summary["latency"]))]
    return "\n".join([*parts, *(f"- {note}" for note in notes_of(summary)), ""])


def _print_table(console: Console, title: str, heads: Iterable[str], rows: Iterable[list[str]], left: int = 1) -> None:
    """A table of 80 columns at most; rows with a broken limit in red. All but the first `left` columns go right."""
    columns = [Column(head, no_wrap=True, justify="left" if i < left else "right") for i, head in enumerate(heads)]
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*row, style="bold red" if row[-1] == "BROKEN" else None)
    console.print(table)


def print_tables(console: Console, summary: dict[str, Any]) -> None:
    """The same on the terminal, broken limits in red."""
    if summary["scores"]:
        rows = [score_cells(row) for row in summary["scores"]]
        _print_table(console, "five tasks against ground truth", SCORE_HEADS, rows, left=2)
    title = f"{summary['result']['path']} against {summary['base']['path']}, {summary['frames']} frames"
    shown: tuple[int, ...] = (0, 1, 2, 5, 6)  # what fits in 80 columns
    rows = [[cells[i] for i in shown] for cells in map(metric_cells, summary["metrics"])]
    _print_table(console, title, (METRIC_HEADS[i] for i in shown), rows)
    if summary["latency"]["result"] or summary["latency"]["base"]:
        shown = (0, 1, 2, 3, 5, 6, 7, 9)  # without the means: 80 columns
        rows = [[cells[i] for i in shown] for cells in latency_cells(summary["latency"])]
        _print_table(console, "latency per frame", (LATENCY_HEADS[i].replace(" ", "\n") for i in shown), rows)
    for note in notes_of(summary):
        console.print(note, markup=False, highlight=False)
    verdict = verdict_of(summary)
    console.print(verdict, style="bold red" if verdict.startswith("BROKEN") else "bold green", markup=False)
