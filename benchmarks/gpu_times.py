"""Times of torch calls on a GPU, and the rates that no kernel can exceed."""

import statistics
from collections.abc import Callable, Sequence

import torch


def median_ms(run: Callable[[], object], repeats: int = 30, warm_up: int = 5) -> float:
    """The median time of `run` between events."""
    times = []
    for index in range(warm_up + repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        end.synchronize()
        if index >= warm_up:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def graph_ms(calls: Sequence[Callable[[], object]]) -> float:
    """The time of one call, all captured in one CUDA graph."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls:
            call()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    return median_ms(graph.replay) / len(calls)


def ceilings(device: torch.device) -> tuple[float, float]:
    """Bytes per second of a large copy (read + written), float16 operations per second of a large matrix product."""
    source = torch.randn(1 << 28, device=device)
    target = torch.empty_like(source)
    copy = 2 * source.numel() * 4 / (median_ms(lambda: target.copy_(source)) * 1e-3)
    a, b = (torch.randn(8192, 8192, device=device).half() for _ in range(2))
    return copy, 2 * 8192**3 / (median_ms(lambda: a @ b) * 1e-3)
