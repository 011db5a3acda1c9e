"""Plain references of the vision operations, written from their papers with explicit loops over corners and levels.

Each takes the torch module first, so that this file imports without torch.
"""

import numpy as np


def bilinear(t, plane, x, y):
    """plane (C,H,W) at pixel positions x, y (…): (C,…); every corner that lies outside counts 0."""
    height, width = plane.shape[1:]
    out = 0
    for dy in (0, 1):
        for dx in (0, 1):
            column, row = x.floor() + dx, y.floor() + dy
            share = (1 - (x - column).abs()) * (1 - (y - row).abs())
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            cell = plane[:, row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()]
            out = out + cell * (share * inside)
    return out


def deform_conv(t, x, offset_mask, weight, stride):
    """Modulated deformable 3x3 convolution, padding 1 (Zhu et al. 2019, equation 1)."""
    n, _, height, width = offset_mask.shape
    kernel = t.tensor(weight)
    rows = t.arange(height).view(-1, 1) * stride
    columns = t.arange(width).view(1, -1) * stride
    out = t.zeros(n, kernel.shape[0], height, width)
    for image in range(n):
        for tap in range(9):
            y = rows + tap // 3 - 1 + offset_mask[image, 2 * tap]
            x_ = columns + tap % 3 - 1 + offset_mask[image, 2 * tap + 1]
            sample = bilinear(t, x[image], x_, y) * offset_mask[image, 18 + tap].sigmoid()
            out[image] += t.einsum("oc,chw->ohw", kernel[:, :, tap // 3, tap % 3], sample)
    return out


def sampling(t, reference, offsets, logits, shapes):
    """Locations (B,Q,M,L,P,2) and weights (B,Q,M,L,P) of deformable attention (Zhu et al. 2021)."""
    levels, points = offsets.shape[3:5]
    locations = t.zeros(offsets.shape)
    for level in range(levels):
        height, width = shapes[level if len(shapes) > 1 else 0]
        at = reference[:, :, None, level, None]  # (B,Q,1,1,2 or 4)
        step = offsets[:, :, :, level]
        if reference.shape[-1] == 2:
            locations[:, :, :, level] = at + step / t.tensor([width, height])
        else:
            locations[:, :, :, level] = at[..., :2] + step / points * at[..., 2:] / 2
    return locations, logits.softmax(-1).view(offsets.shape[:-1])


def sampled_levels(t, value, locations, weights, shapes):
    """sum over levels and points of weight times value at location: (B,Q,M*C)."""
    batch, _, heads, channels = value.shape
    queries = locations.shape[1]
    out = t.zeros(batch, queries, heads, channels)
    for b in range(batch):
        for m in range(heads):
            start = 0
            for level, (height, width) in enumerate(shapes):
                plane = value[b, start : start + height * width, m].T.reshape(channels, height, width)
                at = locations[b, :, m, level]  # (Q,P,2)
                sample = bilinear(t, plane, at[..., 0] * width - 0.5, at[..., 1] * height - 0.5)  # (C,Q,P)
                out[b, :, m] += (sample * weights[b, :, m, level]).sum(-1).T
                start += height * width
    return out.flatten(2)


def deform_attention(t, value, reference, offsets, logits, shapes, num_queries=None):
    """Deformable attention; with num_queries, the flat walk over the buffers of mmcv's kernel where one real level
    meets several configured ones."""
    locations, weights = sampling(t, reference, offsets, logits, shapes)
    if num_queries is not None:
        batch, _, heads, _, points, _ = locations.shape
        flat_at, flat_by = locations.reshape(batch, -1, 2), weights.reshape(batch, -1)
        locations = t.zeros(batch, num_queries, heads, 1, points, 2)
        weights = t.zeros(batch, num_queries, heads, 1, points)
        for q in range(num_queries):
            for m in range(heads):
                first = (q * heads + m) * points
                locations[:, q, m, 0] = flat_at[:, first : first + points]
                weights[:, q, m, 0] = flat_by[:, first : first + points]
    return sampled_levels(t, value, locations, weights, shapes)


def temporal(t, value, reference, offsets, logits, shape):
    """BEVFormer's temporal self-attention: the mean of one deformable attention on each map (Li et al. 2022)."""
    maps = []
    for i in range(value.shape[0]):
        step, logit = offsets[None, :, :, i, None], logits[None, :, :, i]  # (1,Q,M,1,P,2) (1,Q,M,P)
        maps.append(deform_attention(t, value[i : i + 1], reference[None, :, None], step, logit, [shape])[0])
    return sum(maps) / len(maps)


def camera_attention(t, value, reference, visible, offsets, logits, shapes):
    """BEVFormer's spatial cross-attention: the mean over the cameras that see a query (Li et al. 2022)."""
    cameras, queries, anchors, _ = reference.shape
    heads, levels, points = offsets.shape[1:4]
    weights = logits.softmax(-1).view(1, queries, heads, levels, points)
    out = t.zeros(queries, value.shape[2] * value.shape[3])
    count = t.zeros(queries)
    for camera in range(cameras):
        at = t.zeros(1, queries, heads, levels, points, 2)
        for point in range(points):
            for level, (height, width) in enumerate(shapes):
                start = reference[camera, :, None, point % anchors]  # (Q,1,2)
                at[0, :, :, level, point] = start + offsets[:, :, level, point] / t.tensor([width, height])
        sees = visible[camera].any(-1)
        sample = sampled_levels(t, value[camera : camera + 1], at, weights, shapes)[0]
        out += t.where(sees[:, None], sample, 0.0)
        count += sees
    return out / count.clamp(min=1)[:, None]


def rotate(t, rows, matrix, height, width):
    """Nearest rotation about the centre: output pixel -> input pixel by `matrix`, 0 outside; rows are cells."""
    out = t.zeros(rows.shape)
    for cell in range(height * width):
        centred = t.tensor([cell % width - (width - 1) / 2, cell // width - (height - 1) / 2, 1.0])
        x, y = (matrix @ centred).tolist()
        x, y = round(x + (width - 1) / 2), round(y + (height - 1) / 2)
        if 0 <= x < width and 0 <= y < height:
            out[cell] = rows[y * width + x]
    return out


def merge_by_loop(masks, scores, labels, num_classes, quality_thresh, class_0_takes=False):
    """The merging of map masks in the original's order of events (panseg_head.get_bboxes), mask by mask, on arrays.

    Returns (lane, lane_score), and how many masks are drawn. Of equal scores the first goes first.
    """
    inside = masks > 0.5
    scores = scores * ((masks * inside).sum(1, dtype=np.float64) / (inside.sum(1) + 1)) ** 2
    taken = np.zeros(masks.shape[1], bool)
    lane, lane_score = (np.zeros((num_classes, masks.shape[1]), t) for t in (np.int32, np.float32))
    drawn = 0
    for i in np.argsort(-scores, kind="stable"):
        area = inside[i].sum()
        if scores[i] < quality_thresh or area == 0 or (inside[i] & taken).sum() / area > 0.4:
            continue
        free = inside[i] & ~taken
        lane[labels[i], free] = 1
        lane_score[labels[i], free] = masks[i][free]
        if labels[i] > 0 or class_0_takes:
            taken |= free
        drawn += 1
    return lane, lane_score, drawn


def merged(t, masks, scores, labels, *settings):
    """merge_by_loop of torch tensors."""
    lane, lane_score, _ = merge_by_loop(*(x.numpy() for x in (masks, scores, labels)), *settings)
    return [t.from_numpy(lane), t.from_numpy(lane_score)]


def projected(t, matrices, config):
    """Centres of the cells' pillars in the images: (6,4,4) -> (6,B,Z,2), fractions of the padded size."""
    low, high = t.tensor(config.pc_range[:3]), t.tensor(config.pc_range[3:])
    z = t.linspace(0.5, float(high[2] - low[2]) - 0.5, config.num_points_in_pillar) + low[2]
    x = (t.arange(config.bev_w) + 0.5) / config.bev_w * (high[0] - low[0]) + low[0]
    y = (t.arange(config.bev_h) + 0.5) / config.bev_h * (high[1] - low[1]) + low[1]
    y, x, z = t.meshgrid(y, x, z, indexing="ij")  # (H,W,Z) each
    points = t.stack([x, y, z, t.ones_like(x)], -1).view(-1, len(z[0, 0]), 4)  # (B,Z,4)
    seen = t.einsum("nij,bzj->nbzi", matrices, points)
    return seen[..., :2] / seen[..., 2:3].clamp(min=1e-5) / t.tensor([config.padded_width, config.padded_height])


def moved(t, ref_pts, velocity, r_prev, t_prev, t_now, r_inv, seconds, pc_range):
    """Reference points of the last frame in this frame's axes, logits of fractions of pc_range: (T,3) -> (T,3)."""
    low, size = t.tensor(pc_range[:3]), t.tensor(pc_range[3:]) - t.tensor(pc_range[:3])
    metres = ref_pts.sigmoid() * size + low + t.nn.functional.pad(velocity, (0, 1)) * seconds
    return t.logit((((metres @ r_prev + t_prev - t_now) @ r_inv) - low) / size, 1e-5)


def mixed_masks(t, query, key, mix, mix_bias, last, last_bias):
    """layers.seg_mask_head.attention_masks; the weights are numpy arrays."""
    mix, mix_bias, last, last_bias = map(t.tensor, (mix, mix_bias, last, last_bias))
    q, k = (x.view(len(x), 8, -1).transpose(0, 1) for x in (query, key))  # (M,N,C) (M,B,C)
    logits = q @ k.transpose(1, 2) / q.shape[-1] ** 0.5  # (M,N,B)
    mixed = t.relu(t.einsum("om,mnb->onb", mix, logits) + mix_bias.view(-1, 1, 1))
    return t.relu(t.einsum("om,mnb->onb", last, mixed) + last_bias).squeeze(0)


def heads_side_by_side(t, query, key, value, blocked=None):
    """trtllm.vision.multihead_attention, a head at a time."""
    heads = []
    for head in range(query.shape[-2]):
        q, k, v = (x[..., head, :] for x in (query, key, value))  # (…,L,C)
        logits = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5  # (…,Q,K)
        logits = logits if blocked is None else logits.masked_fill(blocked, -10000.0)
        heads.append(t.softmax(logits, -1) @ v)
    return t.stack(heads, -2).view(query.shape)


def likeliest(t, query, states, scores, threshold):
    """layers.occ_head.likeliest_instance."""
    best, index = (t.sigmoid(t.einsum("tad,tdhw->tahw", query, states)) * scores.view(1, -1, 1, 1)).max(1)
    return t.where(best > threshold, index + 1, 0).int()
