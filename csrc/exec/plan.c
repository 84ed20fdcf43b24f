/* The executor: one call runs every op of the plan on all threads.
 *
 * An op is a number of work items that threads take (share.h); the next op starts when all items are done. Nobody
 * waits for a thread that has not taken one: on a machine shared with other programs a thread that the system has put
 * aside costs nothing until it comes back. With a barrier of all threads, decoding beside busy programs fell far below the
 * speed of one thread alone. */
#include "exec/plan.h"
#include "types/blocks.h"
#include "types/matrix.h"
#include "platform/os.h"
#include "exec/residual_blocks.h"
#include <stdlib.h>
#include <string.h>

#define INTERRUPT_SECONDS 0.05

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

/* ---- the run ---- */

/* Waits until all items of an op are done -> 0 when the run is over or to be left. (Tried: to ask meanwhile for the first 32 or
 * 128 KB of this thread's part of the next matrix. Decoding one token gained 0 to 1 %.) */
static int op_finished(pl_plan *plan, pl_items_done *done, int64_t items, uint64_t round)
{
    for (int turn = 1; atomic_load_explicit(&done->count, memory_order_acquire) < items; turn++) {
        if (atomic_load_explicit(&plan->round, memory_order_relaxed) != round)
            return 0;
        pl_wait_turn(turn);
    }
    return !atomic_load_explicit(&plan->stop, memory_order_relaxed);
}

/* Ops are numbered over all runs. */
static uint64_t turn_of(const pl_plan *plan, uint64_t round) { return round * ((uint64_t)plan->n_ops + 1); }

static void run_thread(void *arg, int thread)
{
    pl_plan *plan = arg;
    uint64_t round = atomic_load_explicit(&plan->round, memory_order_acquire);
    double checked = thread == 0 ? pl_seconds() : 0, before = checked;
    for (int i = 0; i < plan->n_ops; i++) {
        pl_share share = {.done = &plan->done[i], .sections = plan->sections, .turn = turn_of(plan, round) + 1 + (uint64_t)i,
                          .thread = thread, .threads = pl_pool_threads(plan->pool)};
        int64_t items = pl_op_run(plan, &plan->ops[i], &share);
        if (thread == 0 && plan->interrupt && pl_seconds() - checked > INTERRUPT_SECONDS) {
            if (plan->interrupt())
                atomic_store(&plan->stop, 1);
            checked = pl_seconds();
        }
        if (!op_finished(plan, &plan->done[i], items, round))
            return;
        if (thread == 0 && plan->profile) {
            double now = pl_seconds();
            plan->profile[i] += now - before;
            before = now;
        }
    }
}

static int batch_ok(const pl_plan *plan, const pl_batch *b)
{
    if (b->n_tokens < 1 || b->n_tokens > plan->max_tokens || b->n_outputs < 0 || b->n_outputs > b->n_tokens)
        return 0;
    for (int i = 0; i < b->n_outputs; i++)
        if (b->outputs[i] < 0 || b->outputs[i] >= b->n_tokens)
            return 0;
    for (int t = 0; t < b->n_tokens; t++) {
        if (b->positions[t] < 0 || b->sequences[t] < 0 || b->sequences[t] >= b->n_sequences)
            return 0;
        if (t > 0 && b->sequences[t] == b->sequences[t - 1] && b->positions[t] != b->positions[t - 1] + 1)
            return 0;
        for (int i = 0; i < plan->n_ops; i++)
            if (plan->ops[i].kind == PL_OP_EMBED && (b->tokens[t] < 0 || b->tokens[t] >= plan->ops[i].table_rows))
                return 0;
    }
    return 1;
}

int pl_plan_run(pl_plan *plan, const pl_batch *batch, int (*interrupt)(void))
{
    if (!batch_ok(plan, batch))
        return PL_EINVAL;
    uint64_t round = atomic_load(&plan->round) + 1;
    for (int i = 0; i < pl_pool_threads(plan->pool); i++) /* before anything changes: late threads are shut out */
        pl_section_close(&plan->sections[i], turn_of(plan, round));
    plan->batch = *batch;
    plan->interrupt = interrupt;
    atomic_store(&plan->stop, 0);
    pl_attention_prepare(plan);
    for (int i = 0; i < plan->n_ops; i++)
        atomic_store_explicit(&plan->done[i].count, 0, memory_order_relaxed);
    atomic_store(&plan->round, round); /* now that all is ready: a thread may be waiting to enter */
    pl_pool_lead(plan->pool, &plan->job);
    if (!atomic_load(&plan->stop))
        return PL_OK;
    pl_pool_settle(plan->pool); /* others may be inside an op that this thread left */
    return PL_EINTERRUPTED;
}

void pl_plan_profile(pl_plan *plan, double *seconds) { plan->profile = seconds; }
int64_t pl_plan_bytes(const pl_plan *plan) { return plan->bytes; }

/* ---- making a plan ---- */

/* Rows that begin a multiple of 4 KB apart would crowd into the same cache sets: an odd number of cache lines lies between
 * them (prompts of a 1B model: 2 % faster). */
static int64_t padded_width(int32_t width) { return round_up(width, 32); }
static int64_t row_stride(int32_t width) { return padded_width(width) + 16; }
static int64_t buffer_bytes(int32_t width, int max_tokens) { return round_up(row_stride(width) * max_tokens * 4, 64); }
/* Room for every block and a residual block, and an odd number of 48-byte blocks, likewise. */
static int64_t q8_stride(int32_t width) { return width / 32 * 2 + 1; }
static int64_t q8_bytes(int32_t width, int max_tokens)
{
    return round_up(q8_stride(width) * max_tokens * (int64_t)sizeof(pl_q8), 64);
}

static int64_t residual_bytes(int32_t width, int max_tokens)
{
    return (max_tokens + PL_RESIDUAL_GROUP - 1) / PL_RESIDUAL_GROUP * ((width + PL_CHUNK - 1) / PL_CHUNK) * pl_residual_bytes(PL_RESIDUAL_GROUP);
}
static_assert(PL_SMALL_BATCH / PL_RESIDUAL_GROUP_SMALL * (PL_RESIDUAL_GROUP_SMALL + 2) <= PL_RESIDUAL_GROUP,
              "one group's room is enough for a few tokens' groups");

static int64_t arena_size(const int32_t *widths, int n_buffers, const int32_t *q8_widths, int n_q8, int max_tokens)
{
    int64_t bytes = 0;
    for (int i = 0; i < n_buffers; i++)
        bytes += buffer_bytes(widths[i], max_tokens);
    for (int i = 0; i < n_q8; i++)
        bytes += q8_bytes(q8_widths[i], max_tokens) + residual_bytes(q8_widths[i], max_tokens);
    return bytes;
}

int64_t pl_plan_measure(const pl_cache *cache, const pl_op *ops, int n_ops, const int32_t *widths, int n_buffers,
                        const int32_t *q8_widths, int n_q8, int max_tokens, int n_ctx, int n_threads)
{
    pl_attention_work work;
    return arena_size(widths, n_buffers, q8_widths, n_q8, max_tokens) +
           pl_attention_measure(&work, cache, ops, n_ops, n_ctx, n_threads);
}

static int buffer_ok(const pl_plan *plan, int32_t b, int may_be_output)
{
    return b == PL_NONE || (b >= 0 && b < plan->n_buffers) || (may_be_output && (b == PL_LOGITS || b == PL_HIDDEN));
}

static int op_ok(const pl_plan *plan, const pl_op *op)
{
    if (op->kind < 0 || op->kind >= PL_OP_COUNT || op->q8 < PL_NONE || op->q8 >= plan->n_q8)
        return 0;
    for (int i = 0; i < 3; i++)
        if (!buffer_ok(plan, op->dst[i], 1))
            return 0;
    for (int i = 0; i < 4; i++)
        if (!buffer_ok(plan, op->src[i], 0))
            return 0;
    if (op->gated) {
        const pl_matrix *gate = op->matrix[0], *up = op->matrix[1];
        if (op->kind != PL_OP_MATMUL || op->q8 < 0 || op->src[1] >= 0 || op->dst[0] < 0 || (gate == NULL) != (up == NULL) ||
            (gate && (gate->type != up->type || gate->panels != up->panels || gate->cols != up->cols)))
            return 0;
    }
    if (op->kind == PL_OP_MATMUL)
        for (int i = 0; i < 3; i++) {
            const pl_matrix *m = op->matrix[i];
            if (!m)
                continue;
            if ((op->q8 >= 0) == pl_panel_is_float(m->type) || (op->q8 >= 0 && m->cols != plan->q8_blocks[op->q8] * 32) ||
                (op->dst[i] >= 0 && plan->widths[op->dst[i]] < m->panels * PL_ROWS))
                return 0;
        }
    if (op->kind == PL_OP_QUANTIZE || op->kind == PL_OP_GATHER)
        return op->q8 >= 0;
    if (op->kind == PL_OP_ATTENTION || op->kind == PL_OP_ROPE_STORE)
        return plan->cache && op->layer >= 0 && op->layer < plan->cache->n_layers && op->kv_heads == plan->cache->kv_heads &&
               op->n_heads % op->kv_heads == 0 && op->head_dim == plan->cache->k.head_dim && op->v_dim == plan->cache->v.head_dim;
    if (op->kind == PL_OP_SQUARES)
        return op->sums && op->src[0] >= 0 && op->width > 0 && op->width <= plan->widths[op->src[0]];
    if (op->kind == PL_OP_EMBED)
        return op->table && pl_type_find(op->table_type) != NULL && op->dst[0] >= 0;
    return 1;
}

/* Places the buffers in one arena. */
static int make_buffers(pl_plan *plan, const int32_t *widths, const int32_t *q8_widths)
{
    for (int i = 0; i < plan->n_buffers; i++) {
        plan->widths[i] = padded_width(widths[i]);
        plan->strides[i] = row_stride(widths[i]);
    }
    for (int i = 0; i < plan->n_q8; i++) {
        plan->q8_blocks[i] = q8_widths[i] / 32;
        if (plan->q8_blocks[i] > UINT16_MAX) /* pl_q8.residual_offset */
            return PL_EINVAL;
        plan->q8_strides[i] = q8_stride(q8_widths[i]);
    }
    plan->arena_bytes = arena_size(widths, plan->n_buffers, q8_widths, plan->n_q8, plan->max_tokens);
    plan->arena = pl_alloc((size_t)plan->arena_bytes, 1);
    if (!plan->arena)
        return PL_ENOMEM;
    uint8_t *at = plan->arena;
    for (int i = 0; i < plan->n_buffers; at += buffer_bytes(widths[i], plan->max_tokens), i++)
        plan->buffers[i] = (float *)(void *)at;
    for (int i = 0; i < plan->n_q8; at += q8_bytes(q8_widths[i], plan->max_tokens), i++)
        plan->q8[i] = (pl_q8 *)(void *)at;
    for (int i = 0; i < plan->n_q8; at += residual_bytes(q8_widths[i], plan->max_tokens), i++)
        plan->residual_blocks[i] = at;
    return PL_OK;
}

pl_plan *pl_plan_new(pl_pool *pool, const pl_cache *cache, const pl_op *ops, int n_ops, const int32_t *widths, int n_buffers,
                     const int32_t *q8_widths, int n_q8, int max_tokens, int n_ctx)
{
    pl_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return NULL;
    plan->pool = pool;
    pl_pool_keep(pool);
    plan->job = (pl_job){run_thread, plan};
    plan->cache = cache;
    plan->kernels = pl_kernels_current();
    plan->n_ops = n_ops;
    plan->n_buffers = n_buffers;
    plan->n_q8 = n_q8;
    plan->max_tokens = max_tokens;
    plan->ops = calloc((size_t)n_ops, sizeof *ops);
    plan->matrices = calloc((size_t)n_ops * 3, sizeof *plan->matrices);
    plan->widths = calloc((size_t)n_buffers + 1, sizeof *plan->widths);
    plan->strides = calloc((size_t)n_buffers + 1, sizeof *plan->strides);
    plan->buffers = calloc((size_t)n_buffers + 1, sizeof *plan->buffers);
    plan->q8 = calloc((size_t)n_q8 + 1, sizeof *plan->q8);
    plan->residual_blocks = calloc((size_t)n_q8 + 1, sizeof *plan->residual_blocks);
    plan->q8_blocks = calloc((size_t)n_q8 + 1, sizeof *plan->q8_blocks);
    plan->q8_strides = calloc((size_t)n_q8 + 1, sizeof *plan->q8_strides);
    plan->done = pl_alloc(sizeof *plan->done * (size_t)n_ops, 1);
    plan->sections = pl_alloc(sizeof *plan->sections * (size_t)pl_pool_threads(pool), 0);
    if (!plan->ops || !plan->matrices || !plan->widths || !plan->strides || !plan->buffers || !plan->q8 || !plan->residual_blocks ||
        !plan->q8_blocks || !plan->q8_strides || !plan->done || !plan->sections || !plan->kernels)
        goto fail;
    memcpy(plan->ops, ops, sizeof *ops * (size_t)n_ops);
    for (int i = 0; i < 3 * n_ops; i++)
        if (ops[i / 3].matrix[i % 3]) {
            plan->matrices[i] = *ops[i / 3].matrix[i % 3];
            plan->ops[i / 3].matrix[i % 3] = &plan->matrices[i];
        }
    if (make_buffers(plan, widths, q8_widths) != PL_OK)
        goto fail;
    for (int i = 0; i < n_ops; i++)
        if (!op_ok(plan, &ops[i]))
            goto fail;
    plan->bytes = plan->arena_bytes;
    if (cache) {
        plan->bytes += pl_attention_measure(&plan->attention, cache, ops, n_ops, n_ctx, pl_pool_threads(pool));
        if (pl_attention_init(plan) != PL_OK)
            goto fail;
    }
    return plan;
fail:
    pl_plan_free(plan);
    return NULL;
}

void pl_plan_free(pl_plan *plan)
{
    if (!plan)
        return;
    pl_pool_settle(plan->pool);
    if (plan->cache)
        pl_attention_free(plan);
    pl_release(plan->arena, (size_t)plan->arena_bytes);
    pl_release(plan->done, sizeof *plan->done * (size_t)plan->n_ops);
    pl_release(plan->sections, sizeof *plan->sections * (size_t)pl_pool_threads(plan->pool));
    pl_pool_free(plan->pool);
    free(plan->matrices);
    free(plan->ops);
    free(plan->widths);
    free(plan->strides);
    free(plan->buffers);
    free(plan->q8);
    free(plan->residual_blocks);
    free(plan->q8_blocks);
    free(plan->q8_strides);
    free(plan);
}
