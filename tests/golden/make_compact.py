"""Write the compact goldens beside this file from the full set (default: ../../../shared/golden). numpy only."""

import pathlib
import shutil
import sys

import numpy as np

HERE = pathlib.Path(__file__).resolve().parent
KEEP = ("in.", "active.", "sdc.", "result.", "carried.", "tracker.", "velo.", "membank.", "qim.", "plan.sdc",
        "plan.collision", "bev.shift",
        "seg.res.drivable", "seg.res.lane", "occ.seg_out", "occ.ins_seg_out")  # fmt: skip
LEFT_OUT = ("in.img", "in.img_u8", "tracker.pred_boxes")  # images come from recipe_inputs.py
COPIED = ("recipe_weights.py", "recipe_inputs.py", "motion_anchors_standin.npy", "tiny/fp32_noise.tsv",
          "tiny/tiny_manifest.tsv")  # fmt: skip


def main() -> None:
    source = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else HERE.parents[2] / "shared" / "golden"
    for folder in ("ops", "tiny"):
        (HERE / folder).mkdir(exist_ok=True)
    for name in COPIED:
        shutil.copyfile(source / name, HERE / name)
    for path in sorted((source / "ops").glob("*.npz")):
        with np.load(path) as file:
            np.savez_compressed(HERE / "ops" / path.name, **file)
    for path in sorted((source / "tiny").glob("frame_*.npz")):
        with np.load(path) as file:
            kept = {k: file[k] for k in file.files if k.startswith(KEEP) and k not in LEFT_OUT}
        np.savez_compressed(HERE / "tiny" / path.name, **kept)


if __name__ == "__main__":
    main()
