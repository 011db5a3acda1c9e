/* The kernels behind a plain C interface: what the TensorRT glue, the tests and the benchmarks call.
 *
 * All pointers are device pointers, aligned to 16 bytes. Every function enqueues on `stream` and returns a cudaError_t
 * (0: success); 1, cudaErrorInvalidValue, for sizes that no kernel was built for. `type` is that of value, offsets,
 * logits and out; reference points are always float32.
 */
#ifndef UNIAD_KERNELS_H_
#define UNIAD_KERNELS_H_

#if defined(_WIN32)
#define UNIAD_API __declspec(dllexport)
#else
#define UNIAD_API __attribute__((visibility("default")))
#endif

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Raised whenever an attribute, an input or a structure of this file changes. */
#define UNIAD_PLUGINS_VERSION 8
#define UNIAD_MAX_LEVELS 8
#define UNIAD_HOPPER_CHANNELS 64 /* UNIAD_LAYOUT_HOPPER: C and O are multiples of these */
#define UNIAD_HOPPER_OUTPUTS 256
#define UNIAD_MERGE_MAX_MASKS 1024
#define UNIAD_MERGE_MAX_PIXELS 262144 /* 512 x 512 */
#define UNIAD_MERGE_MAX_CLASSES 64
#define UNIAD_OCCUPANCY_MAX_INSTANCES 256
#define UNIAD_NORM_MAX_CHANNELS 1024

enum UniadType { UNIAD_FLOAT32 = 0, UNIAD_FLOAT16 = 1 };

/* Multi-scale deformable attention (Zhu et al. 2021). The softmax runs over levels * points.
 *
 * Plain: value (B,S,M,C), reference (B,Qs,L,2|4), offsets (B,Qs,M,L,P,2), logits (B,Qs,M,L*P) -> out (B,Q,M*C), Qs = Q.
 * flat_buffer: L configured levels on one map; query q, head m takes entries [(q*M+m)*P, +P) of the flat buffers, so
 * that Qs = ceil(Q/L) source queries are enough (mmcv ms_deform_attn_cuda_kernel.cuh with 4 levels on 1). mean: B maps
 * with points of their own, averaged (BEVFormer's temporal self-attention): reference (Qs,L,2|4) for all, offsets
 * (Qs,M,B,L,P,2), logits (Qs,M,B,L*P) -> out (Q,M*C).
 *
 * offset_stride, logit_stride: elements from one query's offsets, or logits, to the next one's, a multiple of 16 bytes; 0:
 * they lie densely. So both can be parts of one tensor's rows.
 */
typedef struct UniadDeformableAttention {
    const void* value;
    const float* reference;
    const void* offsets;
    const void* logits;
    void* out;
    int batch, cells, heads, channels;  /* B, S, M, C */
    int value_heads, first_head;        /* value is (B,S,value_heads,C), of which the heads from first_head on are read */
    int queries, source_queries;        /* Q, Qs */
    int levels, points, reference_size; /* L, P, 2 or 4 */
    int maps;                           /* maps there are: L, or 1 with flat_buffer */
    int height[UNIAD_MAX_LEVELS], width[UNIAD_MAX_LEVELS];
    int grid_width; /* > 0: the queries are a grid of so many columns (speed only) */
    int flat_buffer, mean;
    int offset_stride, logit_stride;
} UniadDeformableAttention;

/* BEVFormer's spatial cross-attention (Li et al. 2022): value (N,S,H,C), of which the heads [first_head, first_head + M)
 * count, reference (N,Q,Z,2), visible int32 (N,Q,Z), offsets (Q,M,L,P,2), logits (Q,M,L*P) -> out (Q,M*C), the mean over
 * the cameras that see the query. N <= 32. The strides as in UniadDeformableAttention. */
typedef struct UniadCameraAttention {
    const void* value;
    const float* reference;
    const int* visible;
    const void* offsets;
    const void* logits;
    void* out;
    int cameras, cells, heads, channels; /* N, S, M, C */
    int value_heads, first_head;         /* H, and the first head of value that counts */
    int queries, anchors;                /* Q, Z */
    int levels, points;                  /* L, P */
    int height[UNIAD_MAX_LEVELS], width[UNIAD_MAX_LEVELS];
    int grid_width;
    int offset_stride, logit_stride;
} UniadCameraAttention;

/* How a float16 weight of the convolution is packed (kernels/deform_conv.cuh; pack_deform_weight in
 * examples/uniad/trtllm/plugin_weights.py). Each kernel reads its own only. */
enum UniadWeightLayout {
    UNIAD_LAYOUT_COMMON = 0, /* for the kernel that every GPU runs: C a multiple of 32, O of 64 */
    UNIAD_LAYOUT_HOPPER = 1  /* for the kernel in machine code of sm_90a */
};

/* Modulated deformable convolution (DCNv2, Zhu et al. 2019), 3 x 3, one group, then + bias[o] and optionally ReLU.
 *
 * offset_mask holds 27 channels, the raw output of conv_offset: 18 offsets (dy, dx per tap, pixels), 9 mask logits; its
 * element (n, c, y, x) lies at n * offset_image + c * offset_channel + (y * out_width + x) * offset_pixel.
 * float32: input (N,C,H,W), weight (9,C,O), out (N,O,H',W'), O a multiple of 8.
 * float16: input (N,H,W,C), weight packed as `layout` says, out (N,H',W',O). */
typedef struct UniadDeformConv {
    const void* input;
    const void* offset_mask;
    const void* weight;
    const float* bias;
    void* out;
    int batch, channels, height, width;
    int out_channels, out_height, out_width;
    int stride, padding, relu;
    int offset_image, offset_channel, offset_pixel;
    int layout; /* of a float16 weight; else UNIAD_LAYOUT_COMMON */
} UniadDeformConv;

/* Masks to lane maps (UniAD panseg_head.get_bboxes): masks at or above 0 (N,P), class scores (N), labels int32 (N) ->
 * lane int32 (C,P), 1 where a mask of the class was drawn, and lane_score (C,P), its value there; all float32.
 *
 * Masks are drawn by falling score (the class score times the square of the mean of what is above 0.5), of equals the
 * first, each on the pixels that no earlier one has taken. Left out are those with a score below quality_thresh, and
 * those of which more than 2/5 is taken. Masks of class 0 take none. N, P and C have the limits above. */
typedef struct UniadMergeMasks {
    const float* masks;
    const float* scores;
    const int* labels;
    int* lane;
    float* lane_score;
    void* workspace;            /* of uniad_merge_masks_workspace bytes */
    int count, pixels, classes; /* N, P, C */
    float quality_thresh;
} UniadMergeMasks;

/* A map (H*W,C) turned about its centre by a 2 x 3 matrix from centred output cells (x, y) to centred input cells ->
 * (H*W,C), the nearest cells, zeros outside (torchvision.transforms.functional.rotate). C elements are a multiple of 16
 * bytes. */
typedef struct UniadRotate {
    const void* input;
    const float* matrix; /* row-major: x, then y */
    void* out;
    int height, width, channels;
} UniadRotate;

/* The anchors of pillars (x, y, z), metres, in N cameras: lidar2img (N,4,4), x (B), y (B), z (Z) -> reference (N,B,Z,2),
 * fractions of width and height, and visible int32 (N,B,Z), farther than min_depth and strictly inside; all else float32
 * (BEVFormer's point_sampling). */
typedef struct UniadPointSampling {
    const float* lidar2img;
    const float* x;
    const float* y;
    const float* z;
    float* reference;
    int* visible;
    int cameras, cells, anchors; /* N, B, Z */
    float width, height, min_depth;
} UniadPointSampling;

/* Reference points of T tracks, logits of fractions of a range of metres, moved from the last frame's axes into this
 * one's: ref_pts (T,3), velocity (T,2) m/s, l2g_r_prev (3,3), l2g_t_prev (3), l2g_t (3), l2g_r_inv (3,3), row vectors,
 * time_delta (1) -> (T,3); all float32 (UniAD's velo_update). */
typedef struct UniadPropagate {
    const float* ref_pts;
    const float* velocity;
    const float* l2g_r_prev;
    const float* l2g_t_prev;
    const float* l2g_t;
    const float* l2g_r_inv;
    const float* time_delta;
    float* out;
    int tracks;             /* T */
    float low[3], size[3];  /* of the range */
} UniadPropagate;

/* softmax(query memory^T) memory, float16 with sums in float32: query (R,D), memory (B,D) -> out (R,D). D is 128 or 256. */
typedef struct UniadMemoryAttention {
    const void* query;
    const void* memory;
    void* out;
    void* workspace;        /* of uniad_memory_attention_workspace bytes */
    int rows, cells, width; /* R, B, D */
} UniadMemoryAttention;

/* Scaled dot-product attention of M heads of C channels in G groups (Vaswani et al. 2017), float16 with sums in float32:
 * query (G,Q,M,C), key and value (G,K,H,C), of which the heads [key_head, +M) and [value_head, +M) are read -> out
 * (G,Q,M,C), softmax(query key^T / sqrt(C)) value of each head. `blocked`
 * int32 (Q,K), or (K) for all queries, is not 0 where a query must not see a key, or NULL; a query that sees none gives the
 * mean of the values. C is 16 or 32; K is even where each query has its own row. */
typedef struct UniadMultiheadAttention {
    const void* query;
    const void* key;
    const void* value;
    const int* blocked;
    void* out;
    int groups, queries, keys, heads, channels; /* G, Q, K, M, C */
    int blocked_rows;                           /* Q, or 1 */
    int row_heads, key_head, value_head;        /* H */
    void* workspace;                            /* of uniad_multihead_attention_workspace bytes */
} UniadMultiheadAttention;

/* Masks of queries over a map, from the products of M heads of C channels (Panoptic SegFormer's last attention): query
 * (N,M*C) and key (B,M*C), float16, logits of head m and query n at cell b: their product over sqrt(C). mix (M,M),
 * mix_bias (M), sum (M), sum_bias (1), float32 -> out float32 (N,B), relu(sum . relu(mix logits + mix_bias) + sum_bias).
 * M is 8, M*C 128 or 256. */
typedef struct UniadAttentionMasks {
    const void* query;
    const void* key;
    const float* mix;
    const float* mix_bias;
    const float* sum;
    const float* sum_bias;
    float* out;
    int queries, cells, heads, width; /* N, B, M, M*C */
} UniadAttentionMasks;

/* The likeliest instance of each cell at T time steps: query (T,A,D) and state (T,B,D), float16, score float32 (A) at or
 * above 0 -> out int32 (T,B): 1 + the index of the largest sigmoid(query . state) * score, of equals the first, or 0
 * where that is not above threshold. D is 128 or 256, A at most UNIAD_OCCUPANCY_MAX_INSTANCES. */
typedef struct UniadOccupancy {
    const void* query;
    const void* state;
    const float* score;
    int* out;
    int steps, instances, cells, width; /* T, A, B, D */
    float threshold;
} UniadOccupancy;

/* gain * (y - mean) / sqrt(variance + eps) + shift of each row of y = input + residual, in float32 from the sum on: input
 * (R,D), residual (R,D) or NULL, gain and shift float32 (D) -> (R,D) (Ba et al. 2016). D is at most
 * UNIAD_NORM_MAX_CHANNELS, and D elements are a multiple of 16 bytes. */
typedef struct UniadAddLayerNorm {
    const void* input;
    const void* residual;
    const float* gain;
    const float* shift;
    void* out;
    int rows, channels; /* R, D */
    float eps;
} UniadAddLayerNorm;

/* Images (N,H,W,3) of numbers from 0 to 255, less the mean of each channel, in float32 and rounded once, with zeros below
 * and at the right -> float32: (N,3,H',W'); float16: (N,H',W',8), zeros in the last five channels. */
typedef struct UniadNormaliseImages {
    const void* input;
    void* out;
    int images, height, width; /* N, H, W */
    int out_height, out_width; /* H', W' */
    int channels_last;         /* out (N,H',W',8), float16 only; else (N,3,H',W') */
    float mean[3];
} UniadNormaliseImages;

/* Float16 maps (N,h,w,D) -> their cells, one map after another (N,S,D), each more by its image's and map's vector of embeds
 * (N,maps,D), which may be NULL. D is a multiple of 8. */
typedef struct UniadFlattenMaps {
    const void* input[UNIAD_MAX_LEVELS];
    const void* embeds;
    void* out;
    int images, channels, maps;   /* N, D */
    int cells[UNIAD_MAX_LEVELS]; /* h*w of each map */
} UniadFlattenMaps;

/* Bilinear samples of a float16 map (H,W,D), 0 beyond the centres of its outermost cells, at float32 positions (P,2), x
 * first, in cells from the centre of the first -> (P,D); positions NULL: the map as it is. D is a multiple of 8. */
typedef struct UniadSampleMap {
    const void* input;
    const float* positions;
    void* out;
    int height, width, points, channels; /* H, W, P, D */
} UniadSampleMap;

/* What temporal self-attention reads (BEVFormer): query, position, prev_bev, bev_query (B,D), has_prev int32 (1) -> pair
 * (B,2D), history beside query + position, and maps (2,B,D), history and current. History and current are prev_bev and
 * bev_query where has_prev is not 0, else both are query, and the other two are not read. D elements are a multiple of 16
 * bytes. */
typedef struct UniadTemporalInputs {
    const void* query;
    const void* position;
    const void* prev_bev;
    const void* bev_query;
    const int* has_prev;
    void* pair;
    void* maps;
    int cells, channels; /* B, D */
} UniadTemporalInputs;

/* A 3 x 3 convolution with stride 1 and padding 1 that has few outputs, float16 with sums in float32: input (N,H,W,C),
 * weight (C/32,9,32,32), taps row by row, bias float32 (32), both 0 for the outputs that there are not -> out (N,H,W,32).
 * C is a multiple of 32. */
typedef struct UniadNarrowConv {
    const void* input;
    const void* weight;
    const float* bias;
    void* out;
    int batch, channels, height, width; /* N, C, H, W */
} UniadNarrowConv;

/* The end of a residual network's block, input weight^T + bias + residual and a ReLU, float16 with sums in float32: input
 * (R,C), residual and out (R,O), bias float32 (O). weight (O,C) packed as (O/32,C/16,32,16), the operands of mma.m16n8k16:
 * pack_expand_weight in trtllm/plugin_weights.py. C is 64, 128 or 256, O a multiple of 256. */
typedef struct UniadExpandConv {
    const void* input;
    const void* residual;
    const void* weight;
    const float* bias;
    void* out;
    int rows, channels, outputs; /* R, C, O */
} UniadExpandConv;

/* The start of a residual network, float16 with sums in float32: a 7 x 7 convolution with stride 2 and padding 3, bias, ReLU,
 * 3 x 3 max pooling with stride 2 and padding 1. input (N,3,H,W), planes; weight (64,3,7,7) packed as (2,11,32,16):
 * pack_stem_weight in trtllm/plugin_weights.py; bias float32 (64); out (N,H/4,W/4,64). H is a multiple of 4, W of 8. */
typedef struct UniadStem {
    const void* input;
    const void* weight;
    const float* bias;
    void* out;
    int images, height, width; /* N, H, W */
} UniadStem;

/* `variant` 0 is the one the plugins use; others differ in speed only and exist in libraries built with
 * UNIAD_VARIANTS (see plugins/build.sh). */
UNIAD_API int uniad_deformable_attention(const UniadDeformableAttention* arguments, int type, int variant,
                                         void* stream);
UNIAD_API int uniad_camera_attention(const UniadCameraAttention* arguments, int type, int variant, void* stream);

/* Only UNIAD_LAYOUT_COMMON has variants. cudaErrorNoKernelImageForDevice: UNIAD_LAYOUT_HOPPER can't run here. */
UNIAD_API int uniad_deform_conv(const UniadDeformConv* arguments, int type, int variant, void* stream);
/* The layout that the fastest float16 kernel reads, for N*H*W = cells, on the current device. */
UNIAD_API int uniad_deform_conv_layout(int cells, int channels, int out_channels);

UNIAD_API int uniad_merge_masks(const UniadMergeMasks* arguments, void* stream);
/* Bytes for so many masks, pixels and classes; 0 for sizes that no kernel was built for. */
UNIAD_API size_t uniad_merge_masks_workspace(int count, int pixels, int classes);

UNIAD_API int uniad_point_sampling(const UniadPointSampling* arguments, void* stream);
UNIAD_API int uniad_propagate(const UniadPropagate* arguments, void* stream);
UNIAD_API int uniad_rotate(const UniadRotate* arguments, int type, void* stream);
UNIAD_API int uniad_temporal_inputs(const UniadTemporalInputs* arguments, int type, void* stream);
UNIAD_API int uniad_normalise_images(const UniadNormaliseImages* arguments, int type, void* stream);
UNIAD_API int uniad_add_layer_norm(const UniadAddLayerNorm* arguments, int type, void* stream);

UNIAD_API int uniad_memory_attention(const UniadMemoryAttention* arguments, void* stream);
/* Bytes for these sizes; 0 for those that no kernel was built for. */
UNIAD_API size_t uniad_memory_attention_workspace(int rows, int cells, int width);

UNIAD_API int uniad_multihead_attention(const UniadMultiheadAttention* arguments, void* stream);
/* Bytes for these sizes (the pointers are not read), often 0. */
UNIAD_API size_t uniad_multihead_attention_workspace(const UniadMultiheadAttention* arguments);
UNIAD_API int uniad_attention_masks(const UniadAttentionMasks* arguments, void* stream);
/* Whether the current device has the shared memory that uniad_occupancy needs: 0 or 1. */
UNIAD_API int uniad_occupancy_runs(int width);
UNIAD_API int uniad_occupancy(const UniadOccupancy* arguments, void* stream);

UNIAD_API int uniad_flatten_maps(const UniadFlattenMaps* arguments, void* stream);
UNIAD_API int uniad_sample_map(const UniadSampleMap* arguments, void* stream);

UNIAD_API int uniad_narrow_conv(const UniadNarrowConv* arguments, void* stream);
UNIAD_API int uniad_stem(const UniadStem* arguments, void* stream);
UNIAD_API int uniad_expand_conv(const UniadExpandConv* arguments, void* stream);

UNIAD_API int uniad_plugins_version(void);
/* "key=value" pairs in one line: version, CUDA, TensorRT headers, whether variants are in. */
UNIAD_API const char* uniad_plugins_build(void);
/* 0 where the library has machine code (or PTX) for the current device, else a cudaError_t. */
UNIAD_API int uniad_plugins_check_device(void);
UNIAD_API const char* uniad_error_string(int error);

#ifdef __cplusplus
}
#endif
#endif /* UNIAD_KERNELS_H_ */
