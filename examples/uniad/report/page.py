"""The summary as one HTML page that needs nothing else: styles, charts (SVG) and thumbnails are inside it."""

from __future__ import annotations

import base64
import io
import os
import pathlib
from html import escape
from typing import Any

import numpy as np

from report import charts
from report.compare import STAGES
from report.scores import lookup
from report.tables import (
    LATENCY_HEADS,
    METRIC_HEADS,
    SCORE_HEADS,
    facts_of,
    latency_cells,
    metric_cells,
    notes_of,
    score_cells,
    verdict_of,
)

_STYLE = """
:root{color-scheme:light dark;--bg:#f6f7f9;--card:#fff;--text:#1c2330;--dim:#5c6676;--rule:#dfe3e9;--s0:#2563c9;
--s1:#c2700c;--good:#1a7f4b;--bad:#c5283d;--p0:#4d7ea8;--p1:#7fb069;--p2:#2563c9;--p3:#c98bb9;--p4:#d9a441}
@media (prefers-color-scheme:dark){:root{--bg:#12151b;--card:#1b2029;--text:#e4e8ef;--dim:#98a2b3;--rule:#303846;
--s0:#6ea3ff;--s1:#f0a650;--good:#58c98c;--bad:#ff7686;--p0:#7fb0d8;--p1:#9ccf86;--p2:#6ea3ff;--p3:#dba6cd;--p4:#e8bd63}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--text);font:15px/1.5 system-ui,sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}h1{font-size:25px;margin:0 0 4px}
h2{font-size:18px;margin:36px 0 10px}h3{font-size:14px;margin:0 0 8px;color:var(--dim);font-weight:600}
.grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(460px,100%),1fr));gap:16px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:16px;overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;margin-top:18px}
.tile b{display:block;white-space:nowrap;font-size:22px;font-variant-numeric:tabular-nums}
.tile span{color:var(--dim);font-size:13px}
.badge{display:inline-block;padding:2px 12px;border-radius:99px;color:#fff;background:#1a7f4b;font-weight:600}
.badge.bad{background:#c5283d}table{border-collapse:collapse;width:100%;font-size:14px;font-variant-numeric:tabular-nums}
th,td{padding:4px 10px;text-align:right;border-bottom:1px solid var(--rule);white-space:nowrap}
th{color:var(--dim);font-weight:600}td:first-child,th:first-child,
.left td:nth-child(2),.left th:nth-child(2){text-align:left}
tr.bad td{color:var(--bad);font-weight:600}.up{color:var(--good)}.down{color:var(--bad)}
.note{border-left:4px solid var(--s1);background:var(--card);padding:8px 14px;margin:12px 0;border-radius:0 8px 8px 0}
.dim,li{color:var(--dim)}code{font-size:13px;overflow-wrap:anywhere}a{color:var(--s0)}svg{width:100%;height:auto;display:block}
.tick{font-size:12px;fill:var(--dim)}.label{font-size:13px;fill:var(--text)}line.grid{stroke:var(--rule)}
.s0{fill:var(--s0)}.s1{fill:var(--s1)}.line{fill:none;stroke-width:2.5}.line.s0{stroke:var(--s0)}.line.s1{stroke:var(--s1)}
.thin.line{stroke-dasharray:5 4;stroke-width:1.5}.area{fill-opacity:.28;stroke-width:1.5}.area.s0{stroke:var(--s0)}
.area.s1{stroke:var(--s1)}.p0{fill:var(--p0)}.p1{fill:var(--p1)}.p2{fill:var(--p2)}.p3{fill:var(--p3)}.p4{fill:var(--p4)}
figure{margin:0}figure img{width:100%;border-radius:6px;display:block}
figcaption{font-size:13px;color:var(--dim);padding-top:6px}
"""
_SIDES = ("result", "base")
_TILES = ("AMOTA", "NDS", "IoU-lane", "minADE", "VPQ-n", "L2", "Col")
_PARTS = STAGES[:-1]  # of the whole frame
_THUMBNAIL = 640  # pixels wide


def _table(heads: tuple[str, ...], rows: list[list[str]], kind: str = "", raw: bool = False) -> str:
    lines = [f'<div class="card"><table class="{kind}"><thead><tr>']
    lines += [f"<th>{escape(head)}</th>" for head in heads] + ["</tr></thead><tbody>"]
    for row in rows:
        bad = ' class="bad"' if row[-1] == "BROKEN" else ""
        lines.append(f"<tr{bad}>{''.join(f'<td>{cell if raw else escape(cell)}</td>' for cell in row)}</tr>")
    return "".join([*lines, "</tbody></table></div>"])


def _card(title: str, content: str) -> str:
    return f'<div class="card"><h3>{escape(title)}</h3>{content}</div>'


def _head(summary: dict[str, Any]) -> list[str]:
    verdict = verdict_of(summary)
    bad = " bad" if verdict.startswith("BROKEN") else ""
    parts = [f'<h1>UniAD: result against base</h1><p><span class="badge{bad}">{escape(verdict)}</span></p>']
    for side in _SIDES:
        facts = ", ".join(f"{key} {value}" for key, value in facts_of(summary[side]["run"]).items())
        path = escape(summary[side]["path"])
        parts.append(f'<div class="dim"><b>{side}</b> <code>{path}</code> {escape(facts)}</div>')
    parts.append(f'<div class="dim">{summary["frames"]} frames</div>')
    parts += [f'<p class="note">{escape(n)}</p>' for n in notes_of(summary) if n.startswith(("NOISY", "BROKEN"))]
    tiles = [(row["name"], row, f" {row['unit']}") for row in summary["scores"] if row["name"] in _TILES]
    parts.append('<div class="tiles">')
    for name, row, unit in tiles:
        value = "-" if row["result"] is None else f"{row['result']:.3f}{unit}"
        base = "-" if row["base"] is None else f"{row['base']:.3f}"
        parts.append(f'<div class="card tile"><span>{name}</span><b>{value}</b><span>base {base}</span></div>')
    for side in _SIDES:
        if stats := summary["latency"][side]:
            value, p99 = (f"{charts.number(stats['whole'][k])} ms" for k in ("p50", "p99"))
            parts.append(
                f'<div class="card tile"><span>{side}: frame, p50</span><b>{value}</b><span>p99 {p99}</span></div>'
            )
    return [*parts, "</div>"]


def _scores(summary: dict[str, Any]) -> list[str]:
    if not summary["scores"]:
        return []
    rows = []
    for row in summary["scores"]:
        cells = [escape(cell) for cell in score_cells(row)]
        if row["difference"]:
            better = (row["difference"] > 0) == row["more_is_better"]
            cells[4] = f'<span class="{"up" if better else "down"}">{cells[4]}</span>'
        rows.append(cells)
    reports = {side: summary["tasks"][side] for side in _SIDES}
    horizon = {}
    for plan in ("optimised", "raw"):
        for side in _SIDES:
            if steps := lookup(reports[side], f"planning.{plan}.steps.l2_complete"):
                horizon[f"{side}, {plan}"] = steps
    figures = []
    if horizon:
        kinds = [f"s{_SIDES.index(name.split(',')[0])}{' thin' if 'raw' in name else ''}" for name in horizon]
        seconds = [f"{0.5 * (i + 1):g} s" for i in range(6)]
        figures.append(
            _card(
                "Plan: L2 to the driven way, keyframes with 3 s of it",
                charts.lines("L2 over horizon", "m", seconds, horizon, kinds),
            )
        )
    for title, task, key in (
        ("Detection: average precision by class", "detection", "ap"),
        ("Tracking: AMOTA by class", "tracking", "amota"),
        ("Motion: minADE by class, m", "motion", "min_ade"),
    ):
        classes = {side: lookup(reports[side], f"{task}.classes") for side in _SIDES}
        names = list(next((table for table in classes.values() if table), {}))
        if names:
            series = {side: [lookup(table, f"{n}.{key}") for n in names] for side, table in classes.items() if table}
            kinds = [f"s{_SIDES.index(side)}" for side in series]
            figures.append(_card(title, charts.bars(title, [n.replace("_", " ") for n in names], series, kinds)))
    table = _table(SCORE_HEADS, rows, "left", raw=True)
    return [
        "<h2>Five tasks against ground truth</h2>",
        table,
        '<div class="grid2" style="margin-top:16px">',
        *figures,
        "</div>",
    ]


def _latency(summary: dict[str, Any], seconds: dict[str, dict[str, np.ndarray] | None]) -> list[str]:
    """Distribution and stages; `seconds` per side: seconds per stage and frame."""
    skip, shown = summary["latency"]["warmup_frames"], {side: table for side, table in seconds.items() if table}
    if not shown:
        return []
    whole = {side: 1e3 * t["whole"][min(skip, len(t["whole"]) - 1) :] for side, t in shown.items()}
    kinds = [f"s{_SIDES.index(side)}" for side in shown]
    stages = {side: {part: summary["latency"][side][part]["p50"] for part in _PARTS} for side in shown}
    return [
        '<h2>Latency per frame</h2><div class="grid2">',
        _card("Whole frame, distribution", charts.histogram("latency distribution", "ms", whole, kinds)),
        _card("Stages, p50", charts.stacked("latency by stage", "ms", stages)),
        "</div>",
        '<div style="margin-top:16px">',
        _table(LATENCY_HEADS, latency_cells(summary["latency"])),
        "</div>",
    ]


def _thumbnail(picture: pathlib.Path) -> str:
    """A picture as a data URI of a small JPEG."""
    from PIL import Image  # only where there are pictures

    with Image.open(picture) as image:
        small = image.convert("RGB")
        small.thumbnail((_THUMBNAIL, 10 * _THUMBNAIL))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"


def _worst(summary: dict[str, Any], folder: pathlib.Path) -> list[str]:
    if not summary["worst_frames"]:
        return []
    parts = ["<h2>Worst frames</h2>", f'<p class="dim">{escape(summary["worst_by"])}</p><div class="grid2">']
    for row in summary["worst_frames"]:
        facts = [f"{text} {row[key]:.3f} m" for key, text in _DISTANCES if row[key] is not None]
        caption = f"{row['scene'] or ''} <code>{escape(row['name'])}</code><br>{escape(', '.join(facts))}"
        picture = pathlib.Path(summary["result"]["path"]) / "pictures" / f"{row['name']}.png"
        if picture.is_file():
            link = escape(os.path.relpath(picture.resolve(), folder.resolve()))
            image = f'<a href="{link}"><img src="{_thumbnail(picture)}" alt="frame {escape(row["name"])}"></a>'
            caption += f' <a href="{link}">picture</a>'
        else:
            image = ""
            caption += " (no picture: run.py --visualize)"
        parts.append(f'<figure class="card">{image}<figcaption>{caption}</figcaption></figure>')
    return [*parts, "</div>"]


_DISTANCES = (("to_driven", "plan to the driven way"), ("to_base", "plan to the base's"))


def page(summary: dict[str, Any], seconds: dict[str, dict[str, np.ndarray] | None], folder: pathlib.Path) -> str:
    """The whole page. `seconds`: per side, seconds per stage and frame; `folder`: where the page will lie."""
    body = [
        *_head(summary),
        *_scores(summary),
        *_latency(summary, seconds),
        *_worst(summary, folder),
        "<h2>Result against base, output by output</h2>",
        _table(METRIC_HEADS, [metric_cells(row) for row in summary["metrics"]]),
        "<h2>Notes</h2><ul>",
        *(f"<li>{escape(note)}</li>" for note in notes_of(summary)),
        "</ul>",
    ]
    title = "<title>UniAD summary</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><style>{_STYLE}</style>{title}'
    return f"<!doctype html><html lang=en><head>{head}</head><body><main>{''.join(body)}</main></body></html>\n"
