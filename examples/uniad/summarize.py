"""Step 5: compare a result with a base result: five tasks against ground truth, output by output, latency.

    python summarize.py -i RESULT -b BASE_RESULT [--ground-truth NUSCENES_ROOT] [--max-drop AMOTA=0.01 ...]

Prints tables and writes summary.json, summary.md and summary.html. Where the frames came from a nuScenes root that is
still there, both are scored against it. Exit status: 0 all limits kept, 1 a limit broken, 2 bad input.
"""

import argparse
import json
import math
import pathlib
import sys
import tempfile
from typing import Any

from rich.console import Console
from rich.progress import track

from errors import UniADError, one_line_errors
from files import whole_file
from report.compare import METRICS, STAGES, Metric, Result, compare, load_result, summarize_latency
from report.page import page
from report.scores import Driven, find_score, plan_errors, score_rows, truth_root
from report.tables import KEPT, markdown, print_tables, verdict_of

RATIO_FLAG = "--max-latency-ratio"
WORST_FRAMES = 6  # shown in the page


def flag_of(metric: Metric) -> str:
    """The command line flag of a metric's limit."""
    return f"--{'min' if metric.is_share else 'max'}-{metric.name.replace('_', '-')}"


def limit_value(text: str) -> float:
    """A limit from the command line: a number that is not negative."""
    value = float(text)
    if not value >= 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"{text} is not a limit: give a number from 0 up")
    return value


def drop_value(text: str) -> tuple[str, float]:
    """NAME=X from the command line: a score and how much worse than the base's it may be."""
    name, _, value = text.partition("=")
    try:
        return find_score(name).name, limit_value(value)
    except (UniADError, ValueError) as error:
        raise argparse.ArgumentTypeError(f"{text}: {error}; give NAME=X, as AMOTA=0.01") from error


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="%(prog)s -i RESULT -b BASE_RESULT [options], all of which --help lists",
        description="Compare a result of run.py with a base result (usually the PyTorch executor's).",
        epilog="Exit status: 0 all limits kept, 1 a limit broken, 2 bad input.",
    )
    parser.add_argument("-i", "--input", type=pathlib.Path, required=True, metavar="RESULT", help="result folder")
    parser.add_argument(
        "-b",
        "--base",
        type=pathlib.Path,
        required=True,
        metavar="BASE_RESULT",
        help="base result, or the original's results.pkl",
    )
    parser.add_argument("-o", "--output", type=pathlib.Path, metavar="DIR", help="where to write (default: RESULT)")
    truth = parser.add_argument_group("ground truth")
    truth.add_argument(
        "--ground-truth",
        type=pathlib.Path,
        metavar="ROOT",
        help="nuScenes root to score against (default: the one that the frames came from, where it is still there)",
    )
    truth.add_argument(
        "--infos",
        type=pathlib.Path,
        metavar="PKL",
        help="UniAD's nuscenes_infos_temporal_{train,val}.pkl: its annotations in place of the tables'",
    )
    truth.add_argument("--no-ground-truth", action="store_true", help="only compare the two results")
    truth.add_argument(
        "--max-drop",
        type=drop_value,
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME=X",
        help="how much worse than the base's a score may be, in its own unit: AMOTA=0.01 L2=0.02 ...; "
        "names are those of the table (default: scores are only shown)",
    )
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


def score(options: argparse.Namespace, result: Result) -> tuple[dict[str, Any], dict[str, Driven]]:
    """The summary's `scores`, `tasks`, `ground_truth` and `notes`, and the driven ways by sample token.

    Ground truth that was asked for must be there; the one that is only remembered by the run may be missing.
    """
    empty: dict[str, Any] = {"scores": [], "tasks": {"result": {}, "base": {}}, "ground_truth": None, "notes": []}
    root = options.ground_truth or (None if options.no_ground_truth else truth_root(result.run))
    if root is None:
        if options.max_drop or options.infos:
            wants = "--max-drop needs ground truth" if options.max_drop else "--infos needs the nuScenes root"
            raise UniADError(f"{wants}: give --ground-truth NUSCENES_ROOT")
        return empty, {}
    try:
        from report.evaluate import driven_ways, evaluate, open_truth  # nuscenes-devkit is only needed here

        truth, notes = open_truth(root, result.run, options.infos)
        tasks = {}
        for side, path in (("result", options.input), ("base", options.base)):
            tasks[side], more = evaluate(path, truth, side)
            notes += more
    except (UniADError, ImportError) as error:
        if isinstance(error, ImportError):
            error = UniADError(f"scores need {error.name}: install requirements-nuscenes.txt")
        if options.ground_truth or options.max_drop or options.infos:
            raise error
        return {**empty, "notes": [f"not scored against ground truth: {error}"]}, {}
    boxes = sum(len(truth.objects(i).names) for i in range(len(truth)))
    facts = {"root": str(root), "scenes": len(truth.heads), "frames": len(truth), "boxes": boxes}
    rows = score_rows(tasks["result"], tasks["base"], dict(options.max_drop))
    return {"scores": rows, "tasks": tasks, "ground_truth": facts, "notes": notes}, driven_ways(truth)


def worst_frames(rows: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The frames whose plans are farthest off, and by which measure: from the driven way where that is known."""
    for key, text in (("to_driven", "Farthest from the driven way"), ("to_base", "Farthest from the base's plan")):
        if known := [row for row in rows if row[key]]:
            return sorted(known, key=lambda row: -row[key])[:WORST_FRAMES], f"{text}, mean distance of the plan."
    return [], ""


def main(arguments: list[str] | None = None) -> int:
    options = parse_arguments(arguments)
    if not options.base.is_file():
        return summarize(options, str(options.base))
    with tempfile.TemporaryDirectory(prefix="uniad-base-") as scratch:
        from report.original import write_original  # needs torch

        result = load_result(options.input, "result")
        folder = pathlib.Path(scratch)
        write_original(options.base, result.by_token, str(result.run.get("convention")), folder)
        base_name, options.base = str(options.base), folder
        return summarize(options, base_name)


def summarize(options: argparse.Namespace, base_name: str) -> int:
    """Compare, score, write and print; the exit status."""
    if options.warmup < 0:
        raise UniADError(f"--warmup {options.warmup}: give 0 or more")
    result, base = load_result(options.input, "result"), load_result(options.base, "base result")
    console = Console(stderr=True)
    shown = track(result.frames, "comparing frames", console=console, transient=True, disable=not console.is_terminal)
    rows = check_limits(compare(result, base, shown), options)
    scored, driven = score(options, result)
    if base.lacks:
        scored["notes"].append("base: boxes taken to be in the result's convention, which results.pkl does not tell")
    shown_worst, worst_by = worst_frames(plan_errors(result, base, driven))
    summary = {
        "result": {"path": str(options.input), "run": result.run},
        "base": {"path": base_name, "run": base.run},
        "frames": len(result.frames),
        "worst": options.worst,
        **scored,
        "metrics": rows,
        "latency": compare_latency(result, base, options),
        "worst_frames": shown_worst,
        "worst_by": worst_by,
    }
    summary["passed"] = verdict_of(summary) == KEPT
    folder = options.output or options.input
    texts = {
        "summary.json": json.dumps(summary, indent=1, allow_nan=False) + "\n",
        "summary.md": markdown(summary),
        "summary.html": page(summary, {"result": result.latency, "base": base.latency}, folder),
    }
    for name, text in texts.items():
        with whole_file(folder / name) as part:
            part.write_text(text)
    print_tables(Console(), summary)
    print(f"written: {', '.join(str(folder / name) for name in texts)}")
    return 0 if summary["passed"] else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
