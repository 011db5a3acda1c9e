"""Layer times folded by module."""

import pytest

from runtime.profile import ELSEWHERE, module_of, profile_of, table


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        ("img_backbone/layer1/0/conv1/conv2d", "img_backbone/layer1"),
        ("encoder/layers.0/attentions.1/matmul_3 + encoder/layers.0/attentions.1/add", "encoder/layers.0"),
        ("encoder/layers.0/norms.0/layer_norm + encoder/layers.1/matmul", "encoder"),
        ("{ForeignNode[seg_head/softmax.../seg_head/transformer/add]}", "seg_head"),
        ("{ForeignNode[occ_head/view...planning_head/reg_branch/relu]}", "occ_head … planning_head/reg_branch"),
        ("PWN(PWN(occ_head/sigmoid), occ_head/mul)", "occ_head"),
        ("Reformatting CopyNode for Input Tensor 0 to img_backbone/conv1/conv2d", "img_backbone/conv1"),
        ("__myl_Move_0", ELSEWHERE),
        ("img_backbone.conv1.weight", ELSEWHERE),
    ],
)
def test_module_of(layer, module):
    assert module_of(layer) == module


def test_depth():
    layer = "img_backbone/layer1/0/conv1/conv2d"
    assert [module_of(layer, d) for d in (1, 3)] == ["img_backbone", "img_backbone/layer1/0"]


def test_profile_of():
    times = {"a/b/x": [1.0, 9.0, 2.0], "a/b/y": [3.0] * 3, "c/z": [10.0] * 3}
    profile = profile_of(times)
    assert profile["total"] == 15.0 and profile["frames"] == 3
    assert [(row["module"], row["ms"], row["layers"]) for row in profile["modules"]] == [
        ("c", 10.0, 1),
        ("a/b", 5.0, 2),
    ]
    assert [row["layer"] for row in profile["layers"]] == ["c/z", "a/b/y", "a/b/x"]
    assert sum(row["share"] for row in profile["modules"]) == pytest.approx(1, abs=1e-3)
    text = table(profile, rows=1)
    assert "c " in text and "a/b" not in text and "15.000" in text
