"""The structures of the kernels' C interface (src/kernels.h), field by field, for ctypes."""

import ctypes

MAX_LEVELS = 8
Levels = ctypes.c_int * MAX_LEVELS


class DeformableAttention(ctypes.Structure):
    """UniadDeformableAttention."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("value", "reference", "offsets", "logits", "out")),
        *((name, ctypes.c_int) for name in ("batch", "cells", "heads", "channels", "value_heads", "first_head")),
        *((name, ctypes.c_int) for name in ("queries", "source_queries")),
        *((name, ctypes.c_int) for name in ("levels", "points", "reference_size", "maps")),
        ("height", Levels),
        ("width", Levels),
        *((name, ctypes.c_int) for name in ("grid_width", "flat_buffer", "mean", "offset_stride", "logit_stride")),
    ]


class CameraAttention(ctypes.Structure):
    """UniadCameraAttention."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("value", "reference", "visible", "offsets", "logits", "out")),
        *((name, ctypes.c_int) for name in ("cameras", "cells", "heads", "channels", "value_heads", "first_head")),
        *((name, ctypes.c_int) for name in ("queries", "anchors", "levels", "points")),
        ("height", Levels),
        ("width", Levels),
        *((name, ctypes.c_int) for name in ("grid_width", "offset_stride", "logit_stride")),
    ]


class DeformConv(ctypes.Structure):
    """UniadDeformConv."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "offset_mask", "weight", "bias", "out")),
        *((name, ctypes.c_int) for name in ("batch", "channels", "height", "width")),
        *((name, ctypes.c_int) for name in ("out_channels", "out_height", "out_width")),
        *((name, ctypes.c_int) for name in ("stride", "padding", "relu")),
        *((name, ctypes.c_int) for name in ("offset_image", "offset_channel", "offset_pixel")),
        ("layout", ctypes.c_int),
    ]


class MergeMasks(ctypes.Structure):
    """UniadMergeMasks."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("masks", "scores", "labels", "lane", "lane_score", "workspace")),
        *((name, ctypes.c_int) for name in ("count", "pixels", "classes")),
        ("quality_thresh", ctypes.c_float),
    ]


class PointSampling(ctypes.Structure):
    """UniadPointSampling."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("lidar2img", "x", "y", "z", "reference", "visible")),
        *((name, ctypes.c_int) for name in ("cameras", "cells", "anchors")),
        *((name, ctypes.c_float) for name in ("width", "height", "min_depth")),
    ]


class Propagate(ctypes.Structure):
    """UniadPropagate."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("ref_pts", "velocity", "l2g_r_prev", "l2g_t_prev", "l2g_t")),
        *((name, ctypes.c_void_p) for name in ("l2g_r_inv", "time_delta", "out")),
        ("tracks", ctypes.c_int),
        *((name, ctypes.c_float * 3) for name in ("low", "size")),
    ]


class Rotate(ctypes.Structure):
    """UniadRotate."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "matrix", "out")),
        *((name, ctypes.c_int) for name in ("height", "width", "channels")),
    ]


class NormaliseImages(ctypes.Structure):
    """UniadNormaliseImages."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "out")),
        *((name, ctypes.c_int) for name in ("images", "height", "width", "out_height", "out_width")),
        ("channels_last", ctypes.c_int),
        ("mean", ctypes.c_float * 3),
    ]


class AddLayerNorm(ctypes.Structure):
    """UniadAddLayerNorm."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "residual", "gain", "shift", "out")),
        *((name, ctypes.c_int) for name in ("rows", "channels")),
        ("eps", ctypes.c_float),
    ]


class TemporalInputs(ctypes.Structure):
    """UniadTemporalInputs."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "position", "prev_bev", "bev_query", "has_prev")),
        *((name, ctypes.c_void_p) for name in ("pair", "maps")),
        *((name, ctypes.c_int) for name in ("cells", "channels")),
    ]


class MemoryAttention(ctypes.Structure):
    """UniadMemoryAttention."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "memory", "out", "workspace")),
        *((name, ctypes.c_int) for name in ("rows", "cells", "width")),
    ]


class MultiheadAttention(ctypes.Structure):
    """UniadMultiheadAttention."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "value", "blocked", "out")),
        *((name, ctypes.c_int) for name in ("groups", "queries", "keys", "heads", "channels", "blocked_rows")),
        *((name, ctypes.c_int) for name in ("row_heads", "key_head", "value_head")),
        ("workspace", ctypes.c_void_p),
    ]


class AttentionMasks(ctypes.Structure):
    """UniadAttentionMasks."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "key", "mix", "mix_bias", "sum", "sum_bias", "out")),
        *((name, ctypes.c_int) for name in ("queries", "cells", "heads", "width")),
    ]


class Occupancy(ctypes.Structure):
    """UniadOccupancy."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("query", "state", "score", "out")),
        *((name, ctypes.c_int) for name in ("steps", "instances", "cells", "width")),
        ("threshold", ctypes.c_float),
    ]


class FlattenMaps(ctypes.Structure):
    """UniadFlattenMaps."""

    _fields_ = [
        ("input", ctypes.c_void_p * MAX_LEVELS),
        *((name, ctypes.c_void_p) for name in ("embeds", "out")),
        *((name, ctypes.c_int) for name in ("images", "channels", "maps")),
        ("cells", Levels),
    ]


class SampleMap(ctypes.Structure):
    """UniadSampleMap."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "positions", "out")),
        *((name, ctypes.c_int) for name in ("height", "width", "points", "channels")),
    ]


class ExpandConv(ctypes.Structure):
    """UniadExpandConv."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "residual", "weight", "bias", "out")),
        *((name, ctypes.c_int) for name in ("rows", "channels", "outputs")),
    ]


class Stem(ctypes.Structure):
    """UniadStem."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "out")),
        *((name, ctypes.c_int) for name in ("images", "height", "width")),
    ]


class NarrowConv(ctypes.Structure):
    """UniadNarrowConv."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("input", "weight", "bias", "out")),
        *((name, ctypes.c_int) for name in ("batch", "channels", "height", "width")),
    ]
