"""From thing masks to lane maps: score, order, leave out what is covered (merge loop of panseg_head.get_bboxes).

N = seg_max_num masks, P = pixels of the canvas, C = num_things_classes.
"""

import numpy as np

from trtllm import Tensor, tap
from trtllm import functional as F
from trtllm import vision as V

MASK_THRESH = 0.5
STEPS = 10  # of the merging in one of the regions that TensorRT 8.6 compiles
OVERLAP_THRESH = (2, 5)  # overlap_threshold_things, 0.4, as a ratio of whole numbers


def merge_masks(
    masks: Tensor, scores: Tensor, labels: Tensor, num_classes: int, quality_thresh: float
) -> tuple[Tensor, Tensor]:
    """Draw the masks by falling score, each on the pixels that no earlier one has taken.

    A mask's score is its class score times the square of its mean value inside. Masks with a score below
    `quality_thresh`, and masks of which more than 0.4 is taken already, are left out. The original marks a taken pixel
    with the class label itself, so that masks of class 0 take none: they may cover each other, and the last one's
    values stay. An executor may offer all of it as one operation; nothing inside is tapped then.

    Args:
        masks: float32 (N,P), at or above 0.
        scores: float32 (N), class scores.
        labels: int32 (N), classes 0 to C-1.

    Returns:
        lane, int32 (C,P), 1 where a mask of the class was drawn, and lane_score, float32 (C,P), its value there.
    """
    custom = V.offered("merge_masks", masks, scores, labels, num_classes=num_classes, quality_thresh=quality_thresh)
    if custom is not None:
        return custom
    n = masks.shape[0]
    inside = F.cast(masks > MASK_THRESH, "float32")  # (N,P)
    quality = F.sum(masks * inside, 1) / (F.sum(inside, 1) + 1.0)  # (N)
    scores, order = F.topk(scores * (quality * quality), n, 0)
    masks, inside = F.index_select(masks, 0, order), F.index_select(inside, 0, order)
    labels = F.index_select(labels, 0, order)
    tap("seg.res.scores", scores)
    tap("seg.res.labels", labels)
    limit, before = taken_before(inside, scores, labels, quality_thresh)
    accepted = F.cast(F.sum(inside * before, 1, keepdim=True) < limit, "float32")  # (N,1)
    drawn = inside * (1.0 - before) * accepted  # (N,P)
    return draw(masks, drawn, labels, num_classes)


def taken_before(inside: Tensor, scores: Tensor, labels: Tensor, quality_thresh: float) -> tuple[Tensor, Tensor]:
    """For sorted masks: the overlap (N,1) that each must stay below, and the pixels (N,P) taken when its turn comes."""
    above, below = OVERLAP_THRESH
    area = F.sum(inside, 1)  # (N)
    fit = F.op_and(F.not_op(scores < quality_thresh), area > 0.0)
    # Accepted is overlap/area <= 2/5. Counts are whole numbers, so half a count decides it without rounding; a mask
    # that does not fit gets a limit below 0.
    limit = (F.where(fit, area * above, -1.0) + 0.5) * (1 / below)
    limit = F.unsqueeze(limit, 1)  # (N,1)
    marks = F.unsqueeze(F.cast(F.cast(labels, "bool"), "float32"), 1)  # (N,1), 0 for class 0
    # Acceptance depends, pixel by pixel, on the union of the accepted masks before: that has no closed form, so these
    # are N unrolled steps, and everything that can be is outside of them.
    taken = F.constant(np.zeros((1, inside.shape[1]), np.float32))
    before = []
    for step, (row, bound) in enumerate(zip(F.split(inside * marks, 1), F.split(limit, 1))):
        taken = V.after(taken) if step % STEPS == STEPS - 1 else taken
        before.append(taken)
        overlap = F.sum(row * taken, 1, keepdim=True)  # (1,1)
        taken = F.where(overlap < bound, F.maximum(taken, row), taken)  # (1,P)
    return limit, F.concat(before, 0)


def draw(masks: Tensor, drawn: Tensor, labels: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Class maps from the drawn pixels (N,P), 0 or 1: where several masks of a class are drawn, the last one shows."""
    rank = F.constant(np.arange(1, masks.shape[0] + 1, dtype=np.float32)[:, None])  # (N,1)
    lane, lane_score = [], []
    for label in range(num_classes):
        of_class = F.cast(F.unsqueeze(F.eq(labels, label), 1), "float32")  # (N,1)
        place = drawn * (of_class * rank)  # (N,P)
        last = F.max(place, 0, keepdim=True)  # (1,P)
        shown = F.op_and(F.eq(place, last), place > 0.0)
        lane.append(F.cast(last > 0.0, "int32"))
        lane_score.append(F.sum(F.where(shown, masks, 0.0), 0, keepdim=True))  # (1,P)
    return F.concat(lane, 0), F.concat(lane_score, 0)
