"""The merging of the map's masks (src/kernels/merge_masks.cuh): call and inputs; see merge_by_loop for the outputs."""

import ctypes
import math

import torch
from kernel_calls import call_kernel, pointer, poisoned
from kernel_cases import Case, cell_centres
from kernel_structures import MergeMasks


def merge_workspace(library: ctypes.CDLL, masks: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Scratch memory of merge_masks, filled with ones. Empty for sizes that it doesn't take."""
    library.uniad_merge_masks_workspace.restype = ctypes.c_size_t
    size = library.uniad_merge_masks_workspace(*masks.shape, num_classes)
    return torch.full((size,), 255, dtype=torch.uint8, device=masks.device)


def merge_masks(
    library: ctypes.CDLL,
    masks: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    quality_thresh: float,
    workspace: torch.Tensor | None = None,
    out: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """layers.seg_merge.merge_masks: (lane int32, lane_score float32), both (C,P). `workspace` and `out` are used when
    given."""
    assert (masks.dtype, scores.dtype, labels.dtype) == (torch.float32, torch.float32, torch.int32)
    count, pixels = masks.shape
    lane, lane_score = out or (poisoned((num_classes, pixels), like) for like in (labels, masks))
    if workspace is None:
        workspace = merge_workspace(library, masks, num_classes)
    arguments = MergeMasks(
        masks=pointer(masks),
        scores=pointer(scores),
        labels=pointer(labels),
        lane=pointer(lane),
        lane_score=pointer(lane_score),
        workspace=pointer(workspace),
        count=count,
        pixels=pixels,
        classes=num_classes,
        quality_thresh=quality_thresh,
    )
    call_kernel(library, "uniad_merge_masks", arguments, masks)
    return lane, lane_score


def merge_case(device, count: int, size: tuple[int, int], num_classes: int = 3) -> Case:
    """Arguments of merge_masks: soft ellipses on a map of h x w cells, two fifths of them with good class
    scores, as a trained map head gives them. The same for every device."""
    (h, w), cells = size, cell_centres(*size, "cpu")
    centre, angle = torch.rand(count, 1, 2), torch.rand(count, 1) * math.pi
    x, y = (cells - centre).unbind(-1)  # (N,P)
    radius = torch.rand(count, 1, 2) * 0.35 + 1.0 / min(h, w)
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    distance = torch.hypot(along / radius[..., 0], across / (0.3 * radius[..., 1]))
    masks = torch.sigmoid(6 * (torch.rand(count, 1) * 0.4 + 0.8 - distance))
    scores = torch.rand(count) * torch.where(torch.rand(count) < 0.4, 0.9, 0.1)
    labels = torch.randint(num_classes, (count,), dtype=torch.int32)
    tensors = {"masks": masks, "scores": scores, "labels": labels}
    return {
        **{name: x.to(device).contiguous() for name, x in tensors.items()},
        "num_classes": num_classes,
        "quality_thresh": 0.1,
    }
