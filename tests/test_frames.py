"""data/frames.py: frame files are read exactly, and everything else is one clear error."""

import io
import pickle
import zipfile

import numpy as np
import pytest
from frame_factory import SMALL, frame_values, make_test_frame, write_frames

from data.frames import FrameError, FrameFolder, make_frame, open_source, save_frame


def test_folder_gives_back_what_was_saved(tmp_path):
    frames = write_frames(tmp_path, {"a": 2, "b": 1})
    source = open_source(tmp_path, SMALL)
    assert len(source) == 3
    assert [source.info(i).scene_token for i in range(3)] == ["a", "a", "b"]
    for index, frame in enumerate(frames):
        loaded = source.load(index)
        assert source.info(index).sample_token == loaded.sample_token
        for key, value in frame_values(frame).items():
            np.testing.assert_array_equal(getattr(loaded, key), value, err_msg=key)
            assert np.asarray(getattr(loaded, key)).dtype == np.asarray(getattr(frame, key)).dtype
        pose = source.pose(index)
        np.testing.assert_array_equal(pose.l2g_t, frame.l2g_t)
        np.testing.assert_array_equal(pose.ego_translation, frame.can_bus[:3])
    assert source.describe()["frames"] == 3


def test_images_in_memory_that_is_given(tmp_path):
    (frame,) = write_frames(tmp_path, {"a": 1})
    source, img = open_source(tmp_path, SMALL), np.empty((6, 8, 12, 3), np.uint8)
    loaded = source.load(0, img)
    assert loaded.img is img and loaded.sample_token == frame.sample_token
    np.testing.assert_array_equal(img, frame.img)
    with pytest.raises(FrameError, match=r"frame a-000: images of \(6, 8, 12, 3\) for memory of \(6, 1, 12, 3\)"):
        source.load(0, np.empty((6, 1, 12, 3), np.uint8))


def test_name_order_and_scenes(tmp_path):
    for name, index in (("10", 2), ("02", 1), ("01", 0)):
        save_frame(tmp_path / f"{name}.npz", make_test_frame(index, "a" if index < 2 else "b"))
    assert [FrameFolder(tmp_path, SMALL).info(i).sample_token for i in range(3)] == ["a-000", "a-001", "b-002"]
    only = FrameFolder(tmp_path, SMALL, ["b"])
    assert (len(only), only.load(0).sample_token) == (1, "b-002")
    assert len(FrameFolder(tmp_path, SMALL, ["all"])) == 3
    with pytest.raises(FrameError, match=r"no scene 'c'; there are: a, b"):
        FrameFolder(tmp_path, SMALL, ["c"])


def spoil(**changes):
    return lambda values: {**values, **changes}


IMG = make_test_frame(0).img
BAD_FRAMES = {
    "five cameras": (lambda v: {**v, "img": IMG[:5]}, "5 cameras"),
    "wrong size": (lambda v: {**v, "img": IMG[:, 1:]}, r"\(6, 7, 12, 3\).*built for \(6, 8, 12, 3\)"),
    "grey": (lambda v: {**v, "img": IMG[..., 0]}, "shape"),
    "float image": (lambda v: {**v, "img": IMG.astype(np.float32)}, "uint8.*float32"),
    "NaN image": (lambda v: {**v, "img": np.full(IMG.shape, np.nan, np.float32)}, "contains NaN"),
    "missing field": (lambda v: {k: a for k, a in v.items() if k != "l2g_t"}, "fields missing.*l2g_t"),
    "NaN pose": (spoil(l2g_t=np.full(3, np.nan, np.float32)), "l2g_t contains NaN"),
    "infinite can_bus": (spoil(can_bus=np.full(18, np.inf)), "can_bus contains NaN or infinity"),
    "wrong type": (spoil(can_bus=np.zeros(18, np.float32)), r"can_bus must be float64 \(18,\), but is float32"),
    "wrong shape": (spoil(lidar2img=np.zeros((5, 4, 4))), r"lidar2img must be float64 \(6, 4, 4\)"),
    "unknown command": (spoil(command=np.int64(3)), "unknown command 3.*2 straight"),
    "negative command": (spoil(command=np.int64(-1)), "unknown command -1"),
    "float command": (spoil(command=np.float64(1)), "command must be one integer"),
    "NaN timestamp": (spoil(timestamp=np.float64("nan")), "timestamp is not finite"),
    "integer timestamp": (spoil(timestamp=np.int64(1)), "timestamp must be one float"),
    "token that leaves the folder": (spoil(sample_token="../x"), "sample_token"),
    "empty token": (spoil(sample_token=""), "sample_token"),
}


@pytest.mark.parametrize("case", BAD_FRAMES)
def test_bad_frames(case, tmp_path):
    change, message = BAD_FRAMES[case]
    good = frame_values(make_test_frame(0))
    make_frame(good, SMALL, "good")
    np.savez(tmp_path / "0.npz", **change(good))
    with pytest.raises(FrameError, match=message) as caught:
        open_source(tmp_path, SMALL).load(0)
    assert "\n" not in str(caught.value)
    assert "0.npz" in str(caught.value)


def pickled_object() -> bytes:
    """An .npz whose array is a pickle: it must not be executed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for key, value in frame_values(make_test_frame(0)).items():
            member = io.BytesIO()
            np.save(member, np.array([{"x": 1}], object) if key == "scene_token" else value, allow_pickle=True)
            archive.writestr(f"{key}.npy", member.getvalue())
    return buffer.getvalue()


def good_file() -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **frame_values(make_test_frame(0)))
    return buffer.getvalue()


def single_array() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, IMG)
    return buffer.getvalue()


UNREADABLE = {
    "empty": b"",
    "text": b"not a zip file",
    "truncated": good_file()[:-200],
    "bare pickle": pickle.dumps({"img": 1}),
    "pickled array": pickled_object(),
    "single array": single_array(),
}


@pytest.mark.parametrize("case", UNREADABLE)
def test_unreadable_files(case, tmp_path):
    (tmp_path / "7.npz").write_bytes(UNREADABLE[case])
    with pytest.raises(FrameError, match=r"7\.npz: not a readable frame file") as caught:
        FrameFolder(tmp_path, SMALL)
    assert "\n" not in str(caught.value)


def test_bit_flip_in_the_image(tmp_path):
    damaged = bytearray(good_file())
    damaged[600] ^= 0xFF  # inside the deflated image, the first and largest member
    (tmp_path / "0.npz").write_bytes(bytes(damaged))
    with pytest.raises(FrameError, match=r"0\.npz: not a readable frame file"):
        FrameFolder(tmp_path, SMALL).load(0)


def test_bad_folders(tmp_path):
    with pytest.raises(FrameError, match="no such folder"):
        open_source(tmp_path / "nowhere", SMALL)
    with pytest.raises(FrameError, match="no frame files"):
        open_source(tmp_path, SMALL)
    for name, index, scene in (("0", 0, "a"), ("1", 1, "b"), ("2", 2, "a")):
        save_frame(tmp_path / f"{name}.npz", make_test_frame(index, scene))
    with pytest.raises(FrameError, match="scene a do not follow each other"):
        open_source(tmp_path, SMALL)
    save_frame(tmp_path / "1.npz", make_test_frame(0, "a"))
    with pytest.raises(FrameError, match="a-000 occurs twice"):
        open_source(tmp_path, SMALL)
