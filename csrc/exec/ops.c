/* What the ops of a plan do: each is entered by every thread and returns the number of its items.
 * Nothing that `batch` points to may be read before an item was taken. */
#include "types/blocks.h"
#include "types/matrix.h"
#include "exec/plan.h"
#include "exec/residual_blocks.h"
#include <math.h>
#include <string.h>

static float *row(const pl_plan *plan, int buffer, int64_t i) { return plan->buffers[buffer] + i * plan->strides[buffer]; }

/* The rows of a dst, which may be the batch's own output arrays; NULL when the batch does not want them. */
static float *output_rows(const pl_plan *plan, const pl_op *op, int i, int64_t *stride)
{
    int buffer = op->dst[i];
    if (buffer >= 0) {
        *stride = plan->strides[buffer];
        return plan->buffers[buffer];
    }
    if (buffer == PL_LOGITS) {
        *stride = op->matrix[i] ? op->matrix[i]->panels * PL_ROWS : 0;
        return plan->batch.logits;
    }
    *stride = plan->widths[op->src[0]];
    return plan->batch.hidden;
}

#define TAKE(n, unit, grain) pl_share_take(share, n, unit, grain, &begin, &end)
#define DONE() pl_share_done(share, end - begin)

static int64_t op_embed(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t begin, end, width = plan->widths[op->dst[0]];
    const pl_type_info *info = pl_type_find(op->table_type);
    int64_t cols = op->table_row_bytes / info->block_bytes * info->block_elements;
    int64_t n = plan->batch.n_tokens;
    while (TAKE(n, 1, 1)) {
        float *dst = row(plan, op->dst[0], begin);
        pl_dequantize(op->table_type, op->table + plan->batch.tokens[begin] * op->table_row_bytes, dst, cols);
        memset(dst + cols, 0, sizeof(float) * (size_t)(width - cols));
        DONE();
    }
    return n;
}

static int64_t op_rope_table(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t begin, end, n = plan->batch.n_tokens;
    int half = op->rope_dim / 2;
    while (TAKE(n, 1, 1)) {
        float *dst = row(plan, op->dst[0], begin);
        for (int i = 0; i < half; i++) { /* the angle in float32, as the reference implementations have it */
            float angle = (float)plan->batch.positions[begin] * op->vector[0][i];
            dst[i] = (float)(cos((double)angle)) * op->floats[0];
            dst[half + i] = (float)(sin((double)angle)) * op->floats[0];
        }
        DONE();
    }
    return n;
}

/* Blocks [block0, block1) of row i. */
static void quantize_row(pl_plan *plan, const pl_op *op, const float *x, int64_t block0, int64_t block1, int64_t i)
{
    plan->kernels->quantize(x + 32 * block0, block1 - block0, (int32_t)plan->q8_blocks[op->q8],
                            plan->q8[op->q8] + i * plan->q8_strides[op->q8] + block0);
}

static int64_t op_rms_norm(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t begin, end, n = pl_op_rows(plan, op);
    while (TAKE(n, 1, n > 64 ? 8 : 1)) {
        for (int64_t i = begin; i < end; i++) {
            float *y = row(plan, op->dst[0], i);
            plan->kernels->rms_norm(row(plan, op->src[0], i), op->vector[0], op->floats[0], op->head_dim, y);
            if (op->q8 >= 0)
                quantize_row(plan, op, y, 0, plan->q8_blocks[op->q8], i);
        }
        DONE();
    }
    return n;
}

/* Ops over columns: a row is cut into pieces of 256, so that all threads share a single token's row; of many rows a thread
 * takes whole ones, since what two threads write side by side costs both. */
#define PIECE 256
#define TAKE_PIECES(n, pieces) TAKE((n) * (pieces), pl_unit(n, pieces), (n) > PL_SHARED ? (pieces) : 2)

static int64_t op_quantize(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t n = pl_op_rows(plan, op), blocks = plan->q8_blocks[op->q8], pieces = (blocks * 32 + PIECE - 1) / PIECE, begin, end;
    while (TAKE_PIECES(n, pieces)) {
        for (int64_t item = begin; item < end; item++) {
            int64_t i = item / pieces, b0 = item % pieces * (PIECE / 32), b1 = b0 + PIECE / 32;
            quantize_row(plan, op, row(plan, op->src[0], i), b0, b1 < blocks ? b1 : blocks, i);
        }
        DONE();
    }
    return n * pieces;
}

/* Gathers residual blocks; a single token's are read where they are. */
static int64_t op_gather(pl_plan *plan, const pl_op *op, pl_share *share)
{
    const int64_t n = pl_op_rows(plan, op), blocks = plan->q8_blocks[op->q8], stride = plan->q8_strides[op->q8];
    const int64_t chunks = (blocks + PL_CHUNK_BLOCKS - 1) / PL_CHUNK_BLOCKS;
    const int group = pl_residual_group(n);
    int64_t begin, end, items = n > 1 ? (n + group - 1) / group * chunks : 0;
    while (TAKE(items, 1, 1)) {
        int64_t token = begin / chunks * group, block = begin % chunks * PL_CHUNK_BLOCKS;
        pl_residual_gather(plan->q8[op->q8] + token * stride + block, stride,
                         (int)(blocks - block < PL_CHUNK_BLOCKS ? blocks - block : PL_CHUNK_BLOCKS),
                         (int)(n - token < group ? n - token : group),
                         pl_residual_at(plan->residual_blocks[op->q8], group, blocks, begin / chunks, begin % chunks));
        DONE();
    }
    return items;
}

static int64_t op_silu_mul(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t n = pl_op_rows(plan, op), width = plan->widths[op->src[0]], pieces = (width + PIECE - 1) / PIECE, begin, end;
    while (TAKE_PIECES(n, pieces)) {
        for (int64_t item = begin; item < end; item++) {
            int64_t i = item / pieces, c0 = item % pieces * PIECE, c1 = c0 + PIECE < width ? c0 + PIECE : width;
            float *y = row(plan, op->dst[0], i);
            plan->kernels->silu_mul(row(plan, op->src[0], i) + c0, row(plan, op->src[1], i) + c0, y + c0, c1 - c0);
            if (op->q8 >= 0) {
                int64_t b1 = (c1 + 31) / 32, blocks = plan->q8_blocks[op->q8];
                quantize_row(plan, op, y, c0 / 32, b1 < blocks ? b1 : blocks, i);
            }
        }
        DONE();
    }
    return n * pieces;
}

static int64_t op_add(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t n = pl_op_rows(plan, op), begin, end;
    while (TAKE(n, 1, 1)) {
        plan->kernels->add(row(plan, op->src[0], begin), row(plan, op->src[1], begin), row(plan, op->dst[0], begin),
                           plan->widths[op->dst[0]]);
        DONE();
    }
    return n;
}

static int64_t op_select(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t begin, end, stride;
    float *dst = output_rows(plan, op, 0, &stride);
    int64_t n = dst ? plan->batch.n_outputs : 0;
    while (TAKE(n, 1, 1)) {
        int64_t from = op->outputs ? begin : plan->batch.outputs[begin];
        memcpy(dst + begin * stride, row(plan, op->src[0], from), sizeof(float) * (size_t)plan->widths[op->src[0]]);
        DONE();
    }
    return n;
}

static int64_t op_rope_store(pl_plan *plan, const pl_op *op, pl_share *share)
{
    const pl_batch *b = &plan->batch;
    int64_t begin, end, heads = op->n_heads + op->kv_heads, n = b->n_tokens * heads;
    /* Keys of neighbouring positions share cache lines: a long prompt is cut into pages. */
    while (TAKE(n, pl_unit(b->n_tokens, heads), b->n_tokens >= 4 * PL_TILE ? heads * PL_TILE : (heads + 3) / 4)) {
        for (int64_t item = begin; item < end; item++) {
            int64_t t = item / heads, h = item % heads;
            const float *table = row(plan, op->src[3], t);
            if (h < op->n_heads) {
                float *q = row(plan, op->src[0], t) + h * op->head_dim;
                plan->kernels->rope(q, table, 1, op->head_dim, op->rope_dim, op->rope_neox);
                continue;
            }
            h -= op->n_heads;
            float *k = row(plan, op->src[1], t) + h * op->head_dim;
            int32_t position = b->positions[t];
            uint8_t *page = (uint8_t *)b->pages[b->sequences[t]][position / PL_TILE];
            uint8_t *tile = page + pl_cache_offset(plan->cache, op->layer, (int)h);
            plan->kernels->rope(k, table, 1, op->head_dim, op->rope_dim, op->rope_neox);
            plan->kernels->store_k(&plan->cache->k, tile, position % PL_TILE, k);
            plan->kernels->store_v(&plan->cache->v, tile + plan->cache->k.bytes, position % PL_TILE,
                                   row(plan, op->src[2], t) + h * op->v_dim);
        }
        DONE();
    }
    return n;
}

static int64_t op_matmul(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t n = pl_op_rows(plan, op), begin, end, first[4] = {0}, stride;
    int64_t unit = n == 1 ? 4 : op->gated ? 1 : 2;
    for (int i = 0; i < 3; i++) /* work items: units of panels, matrix after matrix, times blocks of tokens */
        first[i + 1] = first[i] + (op->matrix[i] && !(op->gated && i) ? (op->matrix[i]->panels + unit - 1) / unit : 0);
    /* More tokens share the decoding of a panel; fewer leave every thread several items. (Tried: to take 0.5 or 2 MB of panels
     * through all blocks of tokens of a section before the next ones. No gain: reading weights is not what prompts wait for.) */
    int64_t at_once = first[3] * n >= 16 * share->threads * PL_TOKENS ? PL_TOKENS : PL_TOKENS / 2;
    int64_t token_blocks = (n + at_once - 1) / at_once;
    const int group = pl_residual_group(n);
    if (n == 0 || !output_rows(plan, op, 0, &stride))
        return 0;
    while (TAKE(first[3] * token_blocks, 1, n <= PL_SMALL_BATCH ? PL_QUARTER : 1)) {
        for (int64_t at = begin; at < end;) {
            int64_t item = at % first[3], block = at / first[3];
            int i = item < first[1] ? 0 : item < first[2] ? 1 : 2;
            int64_t last = token_blocks > 1 ? item + 1 : (end < first[i + 1] ? end : first[i + 1]);
            const pl_matrix *m = op->matrix[i];
            float *out = output_rows(plan, op, i, &stride);
            int64_t panel1 = (last - first[i]) * unit;
            plan->kernels->matmul(&(pl_matmul){
                .type = m->type,
                .panels = m->data,
                .cols = m->cols,
                .panel0 = (item - first[i]) * unit,
                .panel1 = panel1 < m->panels ? panel1 : m->panels,
                .q8 = op->q8 >= 0 ? plan->q8[op->q8] : NULL,
                .q8_stride = op->q8 >= 0 ? plan->q8_strides[op->q8] : 0,
                .residual_blocks = op->q8 >= 0 && n > 1 ? (uint8_t *)pl_residual_at(plan->residual_blocks[op->q8], group, plan->q8_blocks[op->q8],
                                                                          block * at_once / group, 0) : NULL,
                .residual_group = group,
                .x = op->q8 >= 0 ? NULL : plan->buffers[op->src[0]],
                .x_stride = op->q8 >= 0 ? 0 : plan->strides[op->src[0]],
                .token0 = block * at_once,
                .token1 = (block + 1) * at_once < n ? (block + 1) * at_once : n,
                .up = op->gated ? op->matrix[1]->data : NULL,
                .bias = op->vector[i],
                .up_bias = op->gated ? op->vector[1] : NULL,
                .residual = i == 0 && op->src[1] >= 0 ? plan->buffers[op->src[1]] : NULL,
                .out = out,
                .out_stride = stride,
            });
            at = token_blocks > 1 ? at + 1 : last;
        }
        DONE();
    }
    return first[3] * token_blocks;
}

int64_t pl_op_run(pl_plan *plan, const pl_op *op, pl_share *share)
{
    switch (op->kind) {
    case PL_OP_EMBED: return op_embed(plan, op, share);
    case PL_OP_ROPE_TABLE: return op_rope_table(plan, op, share);
    case PL_OP_RMS_NORM: return op_rms_norm(plan, op, share);
    case PL_OP_QUANTIZE: return op_quantize(plan, op, share);
    case PL_OP_MATMUL: return op_matmul(plan, op, share);
    case PL_OP_ROPE_STORE: return op_rope_store(plan, op, share);
    case PL_OP_ATTENTION: return pl_attention_run(plan, op, share);
    case PL_OP_GATHER: return op_gather(plan, op, share);
    case PL_OP_SILU_MUL: return op_silu_mul(plan, op, share);
    case PL_OP_ADD: return op_add(plan, op, share);
    case PL_OP_SELECT: return op_select(plan, op, share);
    case PL_OP_SQUARES: return pl_squares_run(plan, op, share);
    default: return 0;
    }
}
