"""Layer times of an engine, folded by module.

TensorRT names a layer after the layers that it fused, "a/b/conv2d + a/b/relu" or "{ForeignNode[a/x...c/y]}"; the
modules are what those paths have in common.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

_PATH = re.compile(r"[A-Za-z_][\w.]*(?:/[\w.]+)+")
ELSEWHERE = "(no module)"


def module_of(layer: str, depth: int = 2) -> str:
    """The module path of a layer, at most `depth` names long; "a … b" where it spans several."""
    groups = []
    for path in _PATH.findall(layer.replace("...", " ")):
        group = path.split("/")[:-1][:depth]  # the last name is the operation
        if group not in groups:
            groups.append(group)
    if not groups:
        return ELSEWHERE
    if len(groups) == 1:
        return "/".join(groups[0])
    common: list[str] = []
    for names in zip(*groups):
        if len(set(names)) > 1:
            break
        common.append(names[0])
    return "/".join(common) or f"{'/'.join(groups[0])} … {'/'.join(groups[-1])}"


def profile_of(times: Mapping[str, Sequence[float]], depth: int = 2) -> dict[str, Any]:
    """Median milliseconds per layer and per module, slowest first, for profile.json."""
    medians = {name: statistics.median(values) for name, values in times.items()}
    total = sum(medians.values())
    modules: dict[str, list[float]] = {}
    for name, ms in medians.items():
        modules.setdefault(module_of(name, depth), []).append(ms)
    return {
        "unit": "ms",
        "frames": max((len(values) for values in times.values()), default=0),
        "total": round(total, 4),
        "modules": [
            {"module": module, "ms": round(sum(ms), 4), "share": round(sum(ms) / total, 4), "layers": len(ms)}
            for module, ms in sorted(modules.items(), key=lambda item: -sum(item[1]))
        ],
        "layers": [
            {"layer": name, "module": module_of(name, depth), "ms": round(ms, 5)}
            for name, ms in sorted(medians.items(), key=lambda item: -item[1])
        ],
    }


def table(profile: Mapping[str, Any], rows: int = 25) -> str:
    """The slowest modules as text."""
    lines = [f"{'module':<60} {'ms':>9} {'share':>7} {'layers':>7}"]
    for row in profile["modules"][:rows]:
        lines.append(f"{row['module'][:60]:<60} {row['ms']:9.3f} {row['share']:7.1%} {row['layers']:7d}")
    return "\n".join([*lines, f"{'all':<60} {profile['total']:9.3f}"])
