"""Where an engine leaves the torch executor: every tapped intermediate of one tiny frame, in the order of the calls.

    python tests/gpu/check_taps.py references -r taps.npz [--frame 5]
    python tests/gpu/check_taps.py run -r taps.npz --prefix motion,occ [--dtype float16] [--plugins auto]

`references` needs torch and no GPU. `run` builds an engine whose outputs are the network's and the taps that begin with
one of the prefixes, and prints for each the norm of the difference over the norm. To be an output keeps a tensor from
being compiled away, and that alone can hide a mistake of the compiler's: with fewer taps more of it stays as it was.
Exit status 1 where one is beyond --bound.
"""

import argparse
import pathlib
from collections.abc import Mapping

import golden_frames as golden
import numpy as np
from check_ops import execute
from graph_io import input_specs, state_specs

from errors import UniADError, one_line_errors
from files import whole_file
from model import UniAD, load_model
from runtime import cuda
from runtime.sequence import Sequence
from runtime.tensorrt_plan import frame_outputs
from trtllm import Tensor
from trtllm import functional as F
from trtllm.network import default_net
from trtllm.plugin_library import select_plugins
from trtllm.tensorrt_builder import BuildOptions, build_engine
from trtllm.tensorrt_flavours import load_flavour

BOUNDS = {"float32": 1e-3, "float16": 0.1}


def call(network: UniAD, tensors: Mapping[str, Tensor], dtype: str) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """frame_outputs, and the frame's taps. Call it inside a net_guard."""
    taps = default_net().taps = {}
    return frame_outputs(network, tensors, dtype), taps


def write_references(path: pathlib.Path, frame: int) -> None:
    """What goes into a frame of the recorded tiny sequence, and all its taps, in float32 on the CPU."""
    import torch

    from trtllm import Network, net_guard
    from trtllm.torch_executor import TORCH, torch_executor

    c_model = golden.recipe_c_model(golden.TINY)
    network, sequence = load_model(c_model, c_model.config), Sequence(c_model.config, c_model.convention)
    specs = state_specs(c_model.config, "float32")
    state = {spec.name: torch.zeros(spec.shape, dtype=TORCH[spec.dtype]) for spec in specs}
    for given in golden.frames(golden.TINY, frame + 1):
        arrays = {name: np.ascontiguousarray(array) for name, array in sequence.inputs(given).items()}
        into = {**{name: torch.from_numpy(array) for name, array in arrays.items()}, **state}
        tensors = {name: Tensor(t, str(t.numpy().dtype), tuple(t.shape)) for name, t in into.items()}
        with torch.inference_mode(), net_guard(Network(torch_executor("cpu"), "float32")):
            outputs, taps = call(network, tensors, "float32")
        state = {spec.name: outputs[f"{spec.name}_out"].handle for spec in specs}
    saved = {f"in.{name}": tensor.numpy() for name, tensor in into.items()}
    saved |= {f"out.{name}": tensor.handle.numpy() for name, tensor in outputs.items()}
    saved |= {f"tap.{name}": tensor.handle.numpy() for name, tensor in taps.items()}
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **saved)
    print(f"{path}: frame {frame}, {len(taps)} taps")


def run(args: argparse.Namespace) -> int:
    """Build, run, print. Returns how many taps and outputs are beyond the bound."""
    with np.load(args.references, allow_pickle=False) as file:
        references = {key: file[key] for key in file.files}
    c_model = golden.recipe_c_model(golden.TINY)
    network, flavour = load_model(c_model, c_model.config), load_flavour(args.backend)
    specs = [*input_specs(c_model.config), *state_specs(c_model.config, args.dtype)]

    def define(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        outputs, taps = call(network, tensors, args.dtype)
        chosen = {name: tensor for name, tensor in taps.items() if name.startswith(tuple(args.prefix))}
        if not chosen:
            raise UniADError(f"no tap begins with {' or '.join(args.prefix)}")
        numbers = {n: F.cast(t, "int32") if t.dtype == "bool" else t for n, t in chosen.items()}
        return {**{f"tap.{name}": tensor for name, tensor in numbers.items()},
                **{f"out.{name}": tensor for name, tensor in outputs.items()}}  # fmt: skip

    options = BuildOptions(
        args.dtype,
        optimization_level=args.builder_opt,
        plugins=select_plugins(args.plugins, flavour),
        compute_capabilities=[cuda.compute_capability()],
    )
    engine = build_engine(define, {spec.name: (spec.dtype, spec.shape) for spec in specs}, flavour, options)
    found = execute(engine.plan, flavour, {s.name: references[f"in.{s.name}"].astype(s.dtype) for s in specs})
    bound, far = args.bound or BOUNDS[args.dtype], 0
    for name, expected in references.items():  # in the order of the calls
        if name in found and expected.size:
            error = golden.norm(found[name].astype(np.float64), expected)
            far += not error <= bound
            print(f"{'ok  ' if error <= bound else 'FAR '} {name:56} {error:.1e}", flush=True)
    print(f"{cuda.device_name()}, {args.backend} {flavour.version}, {args.dtype}: {far} beyond {bound:g}")
    return far


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["references", "run"])
    parser.add_argument("-r", "--references", type=pathlib.Path, required=True, metavar="FILE.npz")
    parser.add_argument("--frame", type=int, default=5, choices=range(8), help="of the tiny sequence (default: 5)")
    parser.add_argument("--prefix", default="motion", type=lambda text: text.split(","), help="of taps' names")
    parser.add_argument("--dtype", default="float16", choices=sorted(BOUNDS))
    parser.add_argument("--backend", default="tensorrt", choices=("tensorrt", "tensorrt-rtx"))
    parser.add_argument("--plugins", default="auto", help="as builder.py's (default: auto)")
    parser.add_argument("--builder-opt", type=int, choices=range(6))
    parser.add_argument("--bound", type=float, help="relative norm (default: 1e-3 or 0.1, by type)")
    args = parser.parse_args()
    if args.step == "references":
        write_references(args.references, args.frame)
        return 0
    return 1 if run(args) else 0


if __name__ == "__main__":
    with one_line_errors():
        raise SystemExit(main())
