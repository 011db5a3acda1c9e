"""Step 2: turn a UniAD checkpoint (.pth) into a c-model, a folder of plain tensors that the builder takes.

python pytorch_convert.py -i uniad_base_e2e.pth -o c_model --anchors motion_anchor_infos_mode6.pkl
"""

import argparse
import concurrent.futures
import os
import pathlib
import time

import numpy as np
import torch
from tqdm import tqdm

from checkpoint import CheckpointError, detect_convention, fit_config, load_anchors, load_checkpoint
from config import CONVENTIONS
from errors import one_line_errors
from files import new_folder, sha256_of
from weight import ANCHORS_KEY, COUNTER_SUFFIX, TensorEntry, is_c_model, write_config, write_tensor

DEFAULT_CONVENTION = "v1.0.1"  # the release of the published weights


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Turn a UniAD checkpoint into a c-model for builder.py.")
    parser.add_argument("-i", "--in-file", required=True, metavar="CKPT.pth", help="checkpoint in the released format")
    parser.add_argument("-o", "--out-dir", required=True, metavar="C_MODEL", help="folder to write")
    parser.add_argument(
        "--model", help="a name in configs/ or a .json file (default: what the checkpoint's shapes fit)"
    )
    parser.add_argument(
        "--anchors", metavar="FILE", help="motion_anchor_infos_mode6.pkl, or .npy of (4,6,12,2); needed"
    )
    parser.add_argument(
        "-t",
        "--storage-type",
        choices=("float32", "float16"),
        default="float32",
        help="type of the stored matrices and kernels; vectors and anchors stay float32 (default: float32)",
    )
    parser.add_argument(
        "-p",
        "--processes",
        type=int,
        default=os.cpu_count() or 1,
        help="tensors converted at the same time (default: the number of cores)",
    )
    parser.add_argument(
        "--convention",
        choices=("auto", *CONVENTIONS),
        default="auto",
        help="upstream release whose box and CAN bus conventions the weights follow (default: read off the meta)",
    )
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("-p/--processes must be at least 1")
    return args


def choose_convention(wanted: str, meta: dict) -> str:
    """The convention that was asked for, or that `meta` shows; says how it was found."""
    if wanted != "auto":
        return wanted
    found = detect_convention(meta)
    if found:
        print(f"convention {found}, by the mmdet versions in the checkpoint's meta")
        return found
    print(
        f"convention {DEFAULT_CONVENTION} assumed (that of the released weights), since the checkpoint's meta does not "
        "tell; give --convention v2.0 if it was trained with branch v2.0"
    )
    return DEFAULT_CONVENTION


def convert_tensor(folder: pathlib.Path, key: str, tensor: torch.Tensor, storage_type: str) -> TensorEntry | str:
    """Write one tensor; returns its entry, or what is wrong with its values."""
    array = tensor.detach().to(torch.float32).contiguous().numpy()
    if not np.isfinite(array).all():
        return f"{key} has NaN or infinite values"
    # Vectors (biases, gains, batch norm statistics) are small and may exceed float16's range: they stay float32.
    if storage_type == "float16" and array.ndim >= 2:
        if np.abs(array).max(initial=0.0) > np.finfo(np.float16).max:
            return f"{key} exceeds float16's range"
        array = array.astype(np.float16)
    return write_tensor(folder, key, array)


def convert_all(
    folder: pathlib.Path, state: dict[str, torch.Tensor], anchors: np.ndarray, storage_type: str, workers: int
) -> dict[str, TensorEntry]:
    """Write every tensor but the counters, and the anchors. Raises CheckpointError naming all tensors of bad values."""
    keys = [key for key in state if not key.endswith(COUNTER_SUFFIX)]
    # Threads, not processes: casting, hashing and writing release the interpreter's lock, and nothing is copied.
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        results = pool.map(lambda key: convert_tensor(folder, key, state[key], storage_type), keys)
        done = dict(zip(keys, tqdm(results, total=len(keys), desc="convert", unit="tensor", disable=None)))
    if faults := [result for result in done.values() if isinstance(result, str)]:
        raise CheckpointError(f"the checkpoint cannot be used: {'; '.join(faults)}")
    entries = {key: entry for key, entry in done.items() if isinstance(entry, TensorEntry)}
    entries[ANCHORS_KEY] = write_tensor(folder, ANCHORS_KEY, anchors)
    return entries


def main() -> None:
    args = parse_args()
    start = time.perf_counter()
    with new_folder(args.out_dir, is_c_model, "a c-model") as folder:
        state, meta = load_checkpoint(args.in_file)
        config = fit_config(state, args.model)
        anchors = load_anchors(args.anchors, config)
        convention = choose_convention(args.convention, meta)
        entries = convert_all(folder, state, anchors, args.storage_type, args.processes)
        source = {
            "checkpoint": os.path.basename(args.in_file),
            "checkpoint_bytes": str(os.path.getsize(args.in_file)),
            "checkpoint_sha256": sha256_of(args.in_file),
            "anchors": os.path.basename(args.anchors),
            "anchors_sha256": sha256_of(args.anchors),
            **{name: str(meta[name]) for name in ("mmcv_version", "mmdet_version", "mmdet3d_version") if name in meta},
        }
        write_config(folder, config, convention, args.storage_type, source, entries)
    total = sum(entry.num_bytes for entry in entries.values())
    print(
        f"{args.out_dir}: model {config.name}, panoptic levels {config.seg_num_levels}, convention {convention}, "
        f"{len(entries)} tensors, {total / 1e6:.1f} MB {args.storage_type}, {time.perf_counter() - start:.1f} s"
    )


if __name__ == "__main__":
    with one_line_errors():
        main()
