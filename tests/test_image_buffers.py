"""Page-locked memory that the TensorRT session lends for images and hands outputs out in (fake_gpu.py)."""

import threading

import pytest
import test_tensorrt_session
from fake_gpu import install
from frame_factory import make_test_frame
from test_tensorrt_session import CONFIG, assert_equal, make_frames, reference

from data.frames import FrameInfo, move_images
from runtime import tensorrt_session
from runtime.frame import AHEAD, run_span
from runtime.sequence import Sequence
from runtime.session import open_session

gpu, plan = test_tensorrt_session.gpu, test_tensorrt_session.plan


def decoded(session, frame):
    """A frame as a source hands it over: its images in an image buffer."""
    img = session.image_buffer()
    img[...] = frame["img"]
    return {**frame, "img": img}


def run_decoded(session, frames):
    """Two frames in flight, each decoded before the last is collected and dropped once it is submitted."""
    results = []
    for index, frame in enumerate(frames):
        session.submit(decoded(session, frame))
        if index:
            results.append(session.collect())
    return [*results, session.collect()]


def test_images_go_straight_from_their_buffer(gpu, plan):
    frames = make_frames(6)
    session = open_session(plan)
    gpu.copies.clear()
    for result, expected in zip(run_decoded(session, frames), reference(frames)):
        assert_equal(result, expected)
    images = frames[0]["img"].nbytes
    uploads = [nbytes for kind, nbytes in gpu.copies if kind == 1]
    assert len(uploads) == 2 * len(frames) and uploads.count(images) == len(frames)
    again = decoded(session, frames[0])
    session.reset()
    for frame in (again, frames[1]):  # one of its own, one from elsewhere
        session.submit(frame)
    assert_equal(session.collect(), reference(frames)[0])
    assert_equal(session.collect(), reference(frames)[1])
    session.reset()
    assert_equal(session.infer(again), reference(frames)[0])  # the same frame once more


def test_an_image_buffer_is_not_lent_before_it_is_uploaded(gpu, plan):
    session, (frame, _) = open_session(plan), make_frames(2)
    first = decoded(session, frame)
    home = first["img"].ctypes.data
    session.submit(first)
    with pytest.raises(ValueError, match="read-only"):
        first["img"][0] = 0
    del first  # nobody but the session needs it now
    others = [session.image_buffer() for _ in range(3)]
    for other in others:
        other[...] = 255
    assert home not in [other.ctypes.data for other in others]
    assert_equal(session.collect(), reference([frame])[0])
    assert session.image_buffer().ctypes.data == home


def test_a_buffer_lent_too_early_is_seen(gpu, plan, monkeypatch):
    """The tests have teeth: with a session that forgets what it uploads, or hands out memory that it writes again."""
    frames = make_frames(6)

    def differs(session):
        with pytest.raises(AssertionError):
            for result, expected in zip(run_decoded(session, frames), reference(frames)):
                assert_equal(result, expected)

    forgetful = open_session(plan)
    monkeypatch.setattr(tensorrt_session._Slot, "__setattr__", forget_images)
    differs(forgetful)
    monkeypatch.undo()
    install(gpu, gpu.trt, monkeypatch)
    reusing = open_session(plan)
    memory = reusing._result_pool.lend()
    monkeypatch.setattr(reusing._result_pool, "lend", lambda: memory)
    differs(reusing)


def forget_images(slot, name, value):
    object.__setattr__(slot, name, None if name == "images" else value)


def test_outputs_stay_as_they_are(gpu, plan):
    """However many are kept: those beyond the pool are copied."""
    frames = make_frames(6) * 4
    expected = reference(frames)
    session = open_session(plan)
    results = [session.infer(frame) for frame in frames]
    assert len(results) > tensorrt_session.POOL
    for result, one in zip(results, expected):
        assert_equal(result, one)
    results[0]["boxes_3d"][:] = 5  # the caller's own


def test_run_span_decodes_into_buffers(gpu, plan):
    """As run.py runs frames: every upload straight from a buffer, and few buffers."""

    class Source:
        def info(self, index):
            return FrameInfo("a", str(index))

        def load(self, index, img):
            return move_images(make_test_frame(index, "a", CONFIG), img)

    session, lent = open_session(plan), []
    gpu.copies.clear()
    lend = session._image_pool.lend
    session._image_pool.lend = lambda: lent.append(1) or lend()
    span = run_span(Source(), 0, 20, Sequence(CONFIG, "v2.0"), session, True)
    assert [index for index, *_ in span] == list(range(20))
    assert len([1 for kind, _ in gpu.copies if kind == 1]) == 2 * 20 and len(lent) == 20
    assert AHEAD + tensorrt_session.IN_FLIGHT < len(session._image_pool._addresses) + 1 <= tensorrt_session.POOL
    others = [thread.name for thread in threading.enumerate() if thread.name.startswith("load")]
    assert others == []
