/* The table of kernels: each tier (a file in isa/) fills in those that it has, dispatch.c the others from its parent's. */
#ifndef PL_KERNELS_H
#define PL_KERNELS_H
#include "types/panel.h"
#include "types/quantize.h"
#include <stddef.h>
#include <stdint.h>

#define PL_TILE 32             /* positions of a KV page and keys of an attention tile */
#define PL_SPLIT 512           /* positions of one partial softmax: a fixed partition, so that threads never change a result */
#define PL_HEAD_DIM_LIMIT 1024 /* elements of a key or a value of one head; api/kv.h: PL_MAX_HEAD_DIM */
#define PL_SAMPLE_BLOCK 64     /* logits of a row whose largest is kept */
#define PL_TOKENS 256          /* tokens of one GEMM work item at most */
#define PL_SMALL_BATCH 32      /* tokens up to which reading weights counts: threads take long runs of them */

/* out[t][row] = sum over k of w[row][k] * x[t][k] (+ bias[row]) (+ residual[t][row]) for panels [panel0, panel1) and
 * tokens [token0, token1). Exactly one of q8 and x is used: q8 for quantized types, x for float types. */
typedef struct {
    int type;
    const uint8_t *panels; /* the whole matrix */
    int64_t cols;
    int64_t panel0, panel1;
    const pl_q8 *q8; /* (n_tokens, q8_stride): the first cols / 32 are the row, residual blocks may follow */
    int64_t q8_stride;
    uint8_t *residual_blocks; /* of more than one token: gathered (residual_blocks.h) from token0 on, */
    int residual_group;       /* in groups of this many tokens */
    const float *x;           /* (n_tokens, x_stride) */
    int64_t x_stride;
    int64_t token0, token1;
    const uint8_t *up;           /* or NULL: a second matrix of the same type and shape, and then (quantized types only)
                            * out = silu(what the first one gives) * (w_up * x (+ up_bias)), without a residual */
    const float *bias, *up_bias; /* padded to whole panels, or NULL */
    const float *residual;       /* (n_tokens, out_stride) or NULL; may be out */
    int alone;                   /* no other thread multiplies meanwhile: memory is faster, and weights are asked for earlier */
    float *out;                  /* (n_tokens, out_stride), stride padded to whole panels */
    int64_t out_stride;
} pl_matmul;

/* Whether products that compute little for each byte of weights (those of one token, of two with 8-bit codes) read one panel and
 * ask far ahead for it; else they do not ask, or read several panels (GEMV_PANELS). All other
 * products ask for the first cache where this is set, else for WEIGHTS_LOCALITY. Set by the CPU when a tier is selected. */
extern int pl_gemv_asks;

/* Where the keys and values of one layer and one KV head lie inside a page, and how they are stored. Keys are
 * transposed, [head_dim][PL_TILE], values are [PL_TILE][head_dim], so that both products of attention run along
 * vector lanes without horizontal sums. Quantized kinds hold scales per 32 dims after the codes. */
typedef struct {
    int type; /* one of exec/kv_types.def */
    int head_dim;
    int rotation;   /* this many neighbouring dims are turned together (kernels/rotation.inc); 0: as they are */
    int64_t bytes;  /* of one head's tile, 64-byte aligned */
    int64_t scales; /* offset of the scales (quantized kinds), else 0 */
} pl_kv_tile;

/* Where a key goes, and what it is. */
typedef struct {
    uint8_t *tile;
    int slot;
    const float *key; /* (head_dim) */
} pl_key_store;

#define PL_STORE_KEYS 16                       /* of one call at most */
#define PL_SHAPED_DIM 256                      /* of a head that is rounded so at most */
#define PL_KEY_STRIDE(dim) (((dim) + 15) & ~15) /* of its factors: floats */

/* Attention of `n_rows` query rows that share one KV head, over keys [first tile, last tile] of one sequence.
 * Row i: query q[i], position pos[i], sees keys lo[i] <= j <= pos[i]. State (m, l, o) is carried in and out. */
typedef struct {
    const pl_kv_tile *k, *v;
    uint8_t *const *pages;      /* page table of the sequence: index = position / PL_TILE */
    int64_t k_offset, v_offset; /* of this layer and head inside a page */
    int64_t key0, key1;         /* keys [key0, key1), key0 a multiple of PL_TILE */
    int64_t ahead;              /* > key1: keys from there on to this one are likely to be wanted by the next call */
    int n_rows;
    const float *const *q; /* already multiplied by the softmax scale and log2 e: weights are powers of two */
    const int32_t *pos, *lo;
    float *const *state; /* per row: m, at 16 the lanes that sum up to l, at PL_STATE_HEAD o[v head_dim] */
    float *scratch;      /* k and v tiles as float32, v's scales and rounded queries, 64-byte aligned: (k + v) * PL_TILE + v +
                     * n_rows * k floats, for k and v the head_dims padded to 32 */
} pl_attention;

/* Scores of attention with relative positions to weights, all of a query's before it is divided by their sum:
 *     2^(scale (scores[i][j] + by_query[i][b] + by_key[j][b]) - the query's largest),  b = buckets[i + j]
 * Rows of queries are read up to a multiple of 16, buckets and elements of rows up to 16 beyond the last. */
#define PL_RUN 1
#define PL_NEAR 2
typedef struct {
    int64_t n_queries, n_keys, n_padded; /* n_padded: a multiple of 16; weights of keys from n_keys on are zero */
    float *scores;                       /* (n_queries, n_padded) */
    int64_t scores_stride;
    const float *by_query; /* (n_queries, n_positions) */
    int64_t by_query_stride;
    const float *by_key; /* (n_keys, n_positions) */
    int64_t by_key_stride;
    const int32_t *buckets;
    const uint8_t *runs; /* PL_RUN where 16 buckets follow each other, PL_NEAR where 8 are at most 7 above the first */
    float scale;         /* with log2 e */
    float *inverse;      /* (n_queries): 1 / the sum of the weights */
} pl_position_softmax;

#define PL_STATE_HEAD 32 /* floats before o in an attention state */

/* Every kernel once: what it returns, its name, what it takes. The struct and the inheritance of tiers are made from it. */
#define PL_KERNEL_LIST(KERNEL) \
    KERNEL(void, matmul_quant, (const pl_matmul *m)) \
    KERNEL(void, matmul_float, (const pl_matmul *m)) \
    KERNEL(int, prefers_int16, (void)) /* panels of int16 (panel.h) are faster than those of floats */ \
    /* of the codes that products of many tokens multiply, 4 to 8; always 8 where the width does not matter; 0: a float type */ \
    KERNEL(int, code_bits, (int type)) \
    /* residual blocks, of those in which a value holds more than `dominant` of the squares: at out[b + residual_offset]; from a \
     * half on of that value alone, below of all */ \
    KERNEL(void, quantize, (const float *x, int64_t n_blocks, int32_t residual_offset, float dominant, pl_q8 *out)) \
    KERNEL(void, rms_norm, (const float *x, const float *weight, float eps, int64_t n, float *y)) \
    /* bias may be NULL; weight and bias padded with zeros to 16 */ \
    KERNEL(void, layer_norm, (const float *x, const float *weight, const float *bias, float eps, int64_t n, float *y)) \
    KERNEL(void, gelu, (const float *x, int tanh, float *y, int64_t n)) /* n padded to 16 */ \
    KERNEL(void, silu_mul, (const float *gate, const float *up, float *y, int64_t n)) /* n padded to 16 */ \
    KERNEL(void, add, (const float *a, const float *b, float *y, int64_t n)) \
    KERNEL(void, rope, (float *x, const float *cos_sin, int n_heads, int head_dim, int rope_dim)) \
    KERNEL(void, rotate, (float *x, int head_dim, int run)) /* in place */ \
    KERNEL(void, store_k, (const pl_kv_tile *, uint8_t *tile, int slot, const float *k)) \
    /* 4-bit keys of one head, rounded one dim after another as exec/kv_rounding.c has it */ \
    KERNEL(void, store_keys, (const pl_kv_tile *, const float *factors, const pl_key_store *keys, int n_keys)) \
    KERNEL(void, store_v, (const pl_kv_tile *, uint8_t *tile, int slot, const float *v)) \
    KERNEL(int, kv_whole, (int type)) /* attention multiplies keys or values of this type in whole numbers */ \
    KERNEL(void, attention, (const pl_attention *)) \
    KERNEL(void, position_softmax, (const pl_position_softmax *)) \
    KERNEL(void, attention_merge, (float *total, const float *part, int head_dim)) \
    KERNEL(void, attention_finish, (const float *state, int head_dim, float *out)) \
    /* F32 (dst NULL: only looked at), F16 or BF16 as float32; 0: one of them is NaN or infinite */ \
    KERNEL(int, read_weights, (int type, const void *src, int64_t n, float *dst)) \
    KERNEL(void, quantize_weights, (const pl_quantize_job *)) \
    /* rows of logits as distributions (divergence.c) */ \
    KERNEL(int, row_top, (const float *row, int64_t n, float *top, int32_t *at)) \
    KERNEL(double, row_exp_sum, (const float *row, int64_t n, float top)) \
    KERNEL(double, row_divergence, (const float *a, const float *b, int64_t n, double log_sum, double shift)) \
    /* rows of logits for the sampler (sampling/): the same bits on every tier */ \
    KERNEL(int, block_maxima, (const float *row, int64_t n, float *maxima)) \
    KERNEL(double, softmax_terms, (const float *x, int64_t n, float top, float *p)) \
    KERNEL(double, softmax_sum, (const float *x, int64_t n, float top)) \
    /* what the tier could reach at best (probe.c) */ \
    KERNEL(uint32_t, probe_read, (const uint8_t *p, int64_t bytes, int streams, int64_t ahead)) \
    KERNEL(int64_t, probe_dot, (int64_t rounds, int bits, volatile uint32_t *sink)) /* bits: as code_bits, or 16 */ \
    KERNEL(int64_t, probe_fma, (int64_t rounds, volatile uint32_t * sink))

typedef struct pl_kernels {
    const char *name;
#define PL_KERNEL_MEMBER(RESULT, NAME, ARGUMENTS) RESULT(*NAME) ARGUMENTS;
    PL_KERNEL_LIST(PL_KERNEL_MEMBER)
#undef PL_KERNEL_MEMBER
} pl_kernels;

static inline void pl_matmul_run(const pl_kernels *kernels, const pl_matmul *m)
{
    if (pl_panel_is_float(m->type))
        kernels->matmul_float(m);
    else
        kernels->matmul_quant(m);
}

void pl_kv_tile_init(pl_kv_tile *tile, int type, int head_dim);
const pl_kernels *pl_kernels_current(void);

#endif
