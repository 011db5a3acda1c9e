"""Step 3: c-model -> engine.plan.

    python builder.py -i ckpt/c-model -o engine.plan -quant=False

Beside the plan stands `<plan>.json`: what was built from what, and the table of inputs, outputs and state.
"""

import argparse
import pathlib
import time

from errors import UniADError, one_line_errors
from weight import load_c_model


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-i", "--in-dir", required=True, type=pathlib.Path, help="c-model of pytorch_convert.py")
    parser.add_argument("-o", "--out-file", required=True, type=pathlib.Path, help="the engine.plan to write")
    parser.add_argument("-quant", default="False", choices=("True", "False"), help="SmoothQuant INT8 (default: False)")
    parser.add_argument("--backend", default="torch", choices=("torch",), help="what will run the network")
    parser.add_argument("--dtype", default="float32", choices=("float32", "float16"), help="type of the network")
    parser.add_argument("--max-tracks", type=int, help="slots for carried tracks (default: the configuration's)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    if args.quant == "True":
        raise UniADError("-quant=True: INT8 engines are not there yet; build with -quant=False")
    if args.max_tracks is not None and not 1 <= args.max_tracks <= 1024:
        raise UniADError(f"--max-tracks {args.max_tracks}: use 1 to 1024")
    started = time.perf_counter()
    c_model = load_c_model(args.in_dir)
    config = c_model.config if args.max_tracks is None else c_model.config.replace(max_tracks=args.max_tracks)
    print(f"{args.in_dir}: {config.name}, {len(c_model.tensors)} tensors verified")

    from runtime.torch_plan import write_torch_plan  # torch only where the backend needs it

    write_torch_plan(c_model, config, args.dtype, args.out_file)
    size = args.out_file.stat().st_size / 1e6
    print(f"{args.out_file}: torch engine, {args.dtype}, {size:.0f} MB, {time.perf_counter() - started:.1f} s")


if __name__ == "__main__":
    with one_line_errors():
        main()
