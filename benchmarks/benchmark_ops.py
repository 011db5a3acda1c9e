"""The plugins' kernels at full size on a GPU: python3 benchmarks/benchmark_ops.py [-o results.json] [--library PATH]

Builds the library with plugins/build.sh (nvcc) unless one is given. For every operation: the time of each kernel
variant, of the composition of plain operations (torch, float16; masks are merged in float32), the bytes and operations
the task needs at least, and which share of the measured roofline the kernel reaches. The ceilings (a large copy, a
large matrix product) are measured in the same run. Times are medians; kernels run in CUDA graphs over several sets of
inputs in turn, more than the L2 cache holds.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import torch
from gpu_times import ceilings, graph_ms, median_ms

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "plugins"), str(ROOT / "examples" / "uniad")]

import kernel_calls  # noqa: E402
import kernel_cases as cases  # noqa: E402
from checkout import git_commit  # noqa: E402
from operations import DEVICE, Operation, operations  # noqa: E402

COLD_BYTES = 200e6  # inputs rotated through: four times an H100's L2 cache


def nbytes(case: cases.Case) -> float:
    """Bytes of all tensors that the kernel reads, each read once."""
    tensors = {
        key: x
        for key, x in case.items()
        if isinstance(x, torch.Tensor) and key != "workspace" and not key.endswith("_weight")
    }
    if "first_head" in case:  # of the values of several layers one layer's
        tensors["value"] = tensors["value"][:, :, : tensors["sampling_offsets"].shape[1]]
    if "first_heads" in case:  # of keys and values the same
        tensors |= {name: tensors[name][:, :, : tensors["query"].shape[2]] for name in ("key", "value")}
    return float(sum(x.numel() * x.element_size() for x in tensors.values()))


def plain_convolutions() -> dict[str, float]:
    """For comparison, ms: cuDNN's plain 3x3 convolutions of the deformable ones' sizes, channels-last float16."""
    times = {}
    for channels, h, w in ((256, 58, 100), (512, 29, 50)):
        x = torch.randn(6, channels, h, w, device=DEVICE).half().contiguous(memory_format=torch.channels_last)
        weight = (
            torch.randn(channels, channels, 3, 3, device=DEVICE).half().contiguous(memory_format=torch.channels_last)
        )
        times[f"6 x {channels} x {h} x {w}"] = median_ms(
            lambda x=x, weight=weight: torch.nn.functional.conv2d(x, weight, padding=1)
        )
    return times


def measure(operation: Operation, library, variants: list[int], copy_rate: float, matrix_rate: float) -> dict:
    """All figures of one operation."""
    first = operation.make()
    out = torch.empty(operation.out_shape, dtype=operation.dtype, device=DEVICE)
    out = out.contiguous(memory_format=torch.channels_last) if out.dim() == 4 else out
    sets = max(2, min(16, -(-int(COLD_BYTES) // int(nbytes(first)))))
    inputs = [first] + [operation.make() for _ in range(sets - 1)]
    moved = nbytes(first) + out.numel() * out.element_size()
    times = {}
    for variant in variants:
        calls = [lambda case=case, variant=variant: operation.call(library, case, out, variant) for case in inputs]
        try:
            times[variant] = graph_ms(calls)
        except RuntimeError as error:
            print(f"{operation.name}, variant {variant}: {error}", file=sys.stderr)
    again = graph_ms([lambda case=case: operation.call(library, case, out, 0) for case in inputs])
    composition = median_ms(lambda: operation.compose(first), repeats=5, warm_up=2)
    floor = max(moved / copy_rate, operation.flops / matrix_rate if operation.matrix else 0.0) * 1e3
    return {
        "operation": operation.name,
        "target_ms": operation.target,
        "ms": times,
        "ms_again": again,
        "composition_ms": composition,
        "bytes": moved,
        "flops": operation.flops,
        "floor_ms": floor,
    }


def table(rows: list[dict]) -> str:
    """A short Markdown table; the plugin's time is variant 0's."""
    lines = [
        "| operation | plugin ms | target | fastest variant | composition ms | MB | GFLOP | floor ms | share |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        best = min(row["ms"], key=row["ms"].get)
        ms = row["ms"][0]
        lines.append(
            f"| {row['operation']} | {ms:.4f} | {row['target_ms'] or '-'} | {best}: {row['ms'][best]:.4f} "
            f"| {row['composition_ms']:.3f} | {row['bytes'] / 1e6:.0f} | {row['flops'] / 1e9:.1f} "
            f"| {row['floor_ms']:.4f} | {row['floor_ms'] / ms:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--out", default="benchmark_ops.json", help="where the figures go")
    parser.add_argument("--library", help="a built libuniad_plugins.so (default: build one)")
    options = parser.parse_args()
    path = options.library
    if path is None:
        build = ROOT / "build" / "plugins"
        subprocess.run([ROOT / "plugins" / "build.sh", build], check=True, env={**os.environ, "VARIANTS": "1"})
        path = build / "libuniad_plugins.so"
    library = kernel_calls.load(path)
    facts = kernel_calls.build_facts(library)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = False
    with torch.inference_mode():
        copy_rate, matrix_rate = ceilings(DEVICE)
        todo = operations(library, facts)
        rows = [measure(operation, library, tried, copy_rate, matrix_rate) for operation, tried in todo]
        plain = plain_convolutions()
    result = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "library": facts,
        "commit": git_commit(),
        "copy_bytes_per_s": copy_rate,
        "float16_flops_per_s": matrix_rate,
        "plain_convolutions_ms": plain,
        "operations": rows,
    }
    pathlib.Path(options.out).write_text(json.dumps(result, indent=1))
    for row in rows:
        print(row["operation"], {variant: round(ms, 4) for variant, ms in row["ms"].items()}, round(row["ms_again"], 4))
    print(f"{result['device']}: copy {copy_rate / 1e12:.2f} TB/s, float16 products {matrix_rate / 1e12:.0f} TFLOP/s")
    print(", ".join(f"plain 3x3 convolution {name}: {ms:.3f} ms" for name, ms in plain.items()))
    print(table(rows))


if __name__ == "__main__":
    main()
