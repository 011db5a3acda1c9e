"""weight.py: a c-model is read as it was written, and every damage to it is named."""

import numpy as np
import pytest

from config import ConfigError, load_config
from weight import WeightError, is_c_model, key_shapes, load_c_model, write_config, write_tensor

TINY = load_config("tiny_e2e")
ARRAYS = {
    "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "A.weight": np.full((2, 3), 7, np.float32),  # keys are case sensitive
    "b.0.bias": np.array([1, 2, 3], np.float16),
    "c.weight": np.asfortranarray(np.arange(24, dtype=np.float32).reshape(2, 3, 4)),
}


@pytest.fixture
def folder(tmp_path):
    """A small c-model; its configuration differs from the one on file."""
    config = TINY.replace(seg_num_levels=1, max_tracks=32)
    entries = {key: write_tensor(tmp_path, key, array) for key, array in ARRAYS.items()}
    source = {"checkpoint": "100%=[x];.pth", "checkpoint_sha256": "0" * 64}
    write_config(tmp_path, config, "v1.0.1", "float32", source, entries)
    return tmp_path


def test_read_as_written(folder):
    model = load_c_model(folder)
    assert model.config == TINY.replace(seg_num_levels=1, max_tracks=32)
    assert model.convention == "v1.0.1" and model.source["checkpoint"] == "100%=[x];.pth"
    assert list(model.tensors) == list(ARRAYS) and len(model.tensors) == 4
    for key, array in ARRAYS.items():
        np.testing.assert_array_equal(model.tensors[key], array, strict=True)
    with pytest.raises(ValueError, match="read-only"):
        model.tensors["a.weight"][0] = 1
    with pytest.raises(KeyError):
        model.tensors["a.bias"]


def test_truncated_altered_and_missing_files_are_all_named(folder):
    data = bytearray((folder / "a.weight.bin").read_bytes())
    data[5] ^= 0x10  # one bit
    (folder / "a.weight.bin").write_bytes(data)
    (folder / "b.0.bias.bin").write_bytes((folder / "b.0.bias.bin").read_bytes()[:-1])
    (folder / "c.weight.bin").unlink()
    with pytest.raises(WeightError) as error:
        load_c_model(folder)
    message = str(error.value)
    assert "a.weight.bin was altered" in message and "\n" not in message
    assert "b.0.bias.bin is truncated or too long (5 bytes, not 6)" in message
    assert "c.weight.bin: No such file" in message and "A.weight" not in message


@pytest.mark.parametrize(
    "damage, expected",
    [
        (lambda text: text[: text.index("c.weight")], "damaged"),  # last tensor gone
        (lambda text: text[:-40], "damaged"),
        (lambda text: text.replace('"embed_dims"', '"embed_dimz"'), "embed_dims"),
        (lambda text: text.replace("v1.0.1", "v3"), "convention 'v3'"),
        (lambda text: text.replace("format = 1", "format = 9"), "format 9"),
        (lambda text: text.replace("b.0.bias", "../../b"), "damaged"),  # a key never leaves the folder
        (lambda text: text.replace("b.0.bias", "/etc/b"), "damaged"),
        (lambda text: text.replace("b.0.bias", "a.weight"), "damaged"),  # twice
        (lambda text: text.replace("float16 3", "int64 3"), "damaged"),
        (lambda text: text.replace("[tensors]", ""), "damaged"),
        (lambda text: text.replace("[tensors]", "[tens"), "damaged"),
        (lambda text: "hello", "damaged"),
        (lambda text: "", "damaged"),
    ],
)
def test_damaged_config(folder, damage, expected):
    path = folder / "config.ini"
    path.write_text(damage(path.read_text()))
    with pytest.raises((WeightError, ConfigError), match=expected) as error:
        load_c_model(folder)
    assert "\n" not in str(error.value)


def test_binary_config(folder):
    (folder / "config.ini").write_bytes(b"\xff\xfe\x00[")
    with pytest.raises(WeightError, match="damaged"):
        load_c_model(folder)


def test_not_a_c_model(tmp_path):
    for path in (tmp_path, tmp_path / "absent"):
        with pytest.raises(WeightError, match="is not a c-model"):
            load_c_model(path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(WeightError, match="is not a c-model"):
        load_c_model(tmp_path / "file")


def test_what_may_be_replaced(folder, tmp_path):
    assert is_c_model(folder)
    (folder / "notes.txt").write_text("mine")
    assert not is_c_model(folder)


def test_key_table():
    shapes = key_shapes(TINY)
    assert len(shapes) == 1485 and len(key_shapes(load_config("base_e2e"))) == 2457
    assert shapes["query_embedding.weight"] == (901, 256)
    assert shapes["img_backbone.bn1.num_batches_tracked"] == ()
    attention = "seg_head.transformer.decoder.layers.1.attentions.1"
    one = key_shapes(TINY.replace(seg_num_levels=1))
    assert shapes[f"{attention}.sampling_offsets.weight"] == (256, 128)
    assert one[f"{attention}.sampling_offsets.weight"] == (64, 128)
    assert one[f"{attention}.attention_weights.bias"] == (32,)
    with pytest.raises(ConfigError, match="no table of keys for model 'other'"):
        key_shapes(TINY.replace(name="other"))
