/* Attention of a batch: which thread attends which queries to which pages.
 *
 * Keys are cut into splits of PL_SPLIT positions. A query's softmax is computed per split and the splits are merged in
 * order, always. For a prompt one item does so split after split for a group of queries; for a single token over a long
 * context the splits are items of their own, and whichever finishes last merges. Both give the same bits. */
#include "types/blocks.h"
#include "platform/os.h"
#include "exec/plan.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define ROWS_WANTED 64 /* query rows of an item: enough to share the pages read, few enough for the L2 cache */
#define PARTS 1024     /* partial states kept at most, beyond what one token over the whole context needs */

typedef struct {
    float **total, **part;
    const float **q;
    int32_t *pos, *lo;
    float *tiles;
} item_scratch;

static int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }

/* A key tile, a value tile and the scales of a value tile, as float32. */
static int64_t tiles_floats(const pl_cache *c)
{
    int64_t k_dim = (c->k.head_dim + 31) / 32 * 32, v_dim = (c->v.head_dim + 31) / 32 * 32;
    return (k_dim + v_dim) * PL_TILE + v_dim;
}

static int heads_per_kv(const pl_op *ops, int n_ops, const pl_cache *c)
{
    int most = 1;
    for (int i = 0; i < n_ops; i++)
        if (ops[i].kind == PL_OP_ATTENTION && ops[i].n_heads / c->kv_heads > most)
            most = ops[i].n_heads / c->kv_heads;
    return most;
}

int64_t pl_attention_measure(pl_attention_work *w, const pl_cache *c, const pl_op *ops, int n_ops, int n_ctx, int n_threads)
{
    int heads = heads_per_kv(ops, n_ops, c), tokens = ROWS_WANTED / heads > 1 ? ROWS_WANTED / heads : 1;
    w->heads_per_kv = heads;
    w->tokens_max = tokens;
    w->rows_max = tokens * heads;
    w->state_floats = PL_STATE_HEAD + (c->v.head_dim + 31) / 32 * 32;
    w->part_capacity = ((int64_t)n_ctx / PL_SPLIT + 1) * c->kv_heads * heads + PARTS;
    int64_t tile_floats = tiles_floats(c);
    int64_t q_floats = (int64_t)w->rows_max * ((c->k.head_dim + 15) / 16 * 16);
    w->scratch_bytes = align64(tile_floats * 4) + align64(2 * w->rows_max * w->state_floats * 4) + align64(q_floats * 4) +
                       align64(w->rows_max * (int64_t)(3 * sizeof(void *) + 2 * sizeof(int32_t)));
    return w->part_capacity * w->state_floats * 4 + w->scratch_bytes * n_threads;
}

int pl_attention_init(pl_plan *plan)
{
    pl_attention_work *w = &plan->attention;
    w->groups = calloc((size_t)plan->max_tokens, sizeof *w->groups);
    w->pending = calloc((size_t)plan->max_tokens * (size_t)plan->cache->kv_heads, sizeof *w->pending);
    w->parts = pl_alloc((size_t)(w->part_capacity * w->state_floats * 4), 0);
    w->scratch = pl_alloc((size_t)(w->scratch_bytes * pl_pool_threads(plan->pool)), 0);
    return w->groups && w->pending && w->parts && w->scratch ? PL_OK : PL_ENOMEM;
}

void pl_attention_free(pl_plan *plan)
{
    pl_attention_work *w = &plan->attention;
    free(w->groups);
    free((void *)w->pending);
    pl_release(w->parts, (size_t)(w->part_capacity * w->state_floats * 4));
    pl_release(w->scratch, (size_t)(w->scratch_bytes * pl_pool_threads(plan->pool)));
}

void pl_attention_prepare(pl_plan *plan)
{
    pl_attention_work *w = &plan->attention;
    const pl_batch *b = &plan->batch;
    int kv_heads = plan->cache->kv_heads;
    int64_t parts = 0;
    w->n_groups = 0;
    w->n_items = 0;
    w->apart = 0;
    for (int t = 0; t < b->n_tokens;) {
        int end = t + 1;
        while (end < b->n_tokens && end - t < w->tokens_max && b->sequences[end] == b->sequences[t])
            end++;
        int n_splits = b->positions[t] / PL_SPLIT + 1;
        int64_t states = (int64_t)n_splits * w->heads_per_kv * kv_heads;
        if (end - t > 1 || parts + states > w->part_capacity)
            n_splits = 1;
        w->groups[w->n_groups++] = (pl_group){b->sequences[t], t, end - t, n_splits, w->n_items, parts};
        w->n_items += (int64_t)n_splits * kv_heads;
        if (n_splits > 1) {
            parts += states;
            w->apart = 1;
        }
        t = end;
    }
    w->apart |= w->n_groups <= PL_SHARED;
    for (int i = 0; i < w->n_groups * kv_heads; i++)
        atomic_store_explicit(&w->pending[i], w->groups[i / kv_heads].n_splits, memory_order_relaxed);
}

static item_scratch scratch_of(pl_plan *plan, int thread)
{
    pl_attention_work *w = &plan->attention;
    uint8_t *p = w->scratch + thread * w->scratch_bytes;
    item_scratch s;
    s.tiles = (float *)(void *)p;
    p += align64(tiles_floats(plan->cache) * 4);
    float *states = (float *)(void *)p;
    p += align64(2 * w->rows_max * w->state_floats * 4);
    float *q = (float *)(void *)p;
    int64_t q_stride = (plan->cache->k.head_dim + 15) / 16 * 16;
    p += align64(w->rows_max * q_stride * 4);
    s.total = (float **)(void *)p;
    s.part = s.total + w->rows_max;
    s.q = (const float **)(void *)(s.part + w->rows_max);
    s.pos = (int32_t *)(void *)(s.q + w->rows_max);
    s.lo = s.pos + w->rows_max;
    for (int r = 0; r < w->rows_max; r++) {
        s.total[r] = states + 2 * r * w->state_floats;
        s.part[r] = s.total[r] + w->state_floats;
        s.q[r] = q + r * q_stride;
    }
    return s;
}

static void state_clear(const pl_plan *plan, float *state)
{
    memset(state, 0, sizeof(float) * (size_t)plan->attention.state_floats);
    state[0] = -INFINITY;
}

/* One split of every row: softmax states of keys [split * PL_SPLIT, …) into states[row]. */
static void attend_split(pl_plan *plan, const pl_op *op, const pl_group *g, int head, int64_t split, int rows,
                         const item_scratch *s, float *const *states)
{
    int64_t offset = pl_cache_offset(plan->cache, op->layer, head), begin = split * PL_SPLIT;
    int64_t last = s->pos[rows - 1] + 1, end = begin + PL_SPLIT < last ? begin + PL_SPLIT : last, first = s->lo[0] / PL_TILE * PL_TILE;
    for (int r = 0; r < rows; r++)
        state_clear(plan, states[r]);
    plan->kernels->attention(&(pl_attention){
        .k = &plan->cache->k,
        .v = &plan->cache->v,
        .pages = (uint8_t *const *)(const void *)plan->batch.pages[g->sequence],
        .k_offset = offset,
        .v_offset = offset + plan->cache->k.bytes,
        .key0 = begin > first ? begin : first,
        .key1 = end,
        .n_rows = rows,
        .q = s->q,
        .pos = s->pos,
        .lo = s->lo,
        .state = states,
        .scratch = s->tiles,
    });
}

/* Copies the group's queries of one KV head, times the softmax scale and log2 e; returns how many rows. */
static int load_rows(pl_plan *plan, const pl_op *op, const pl_group *g, int head, item_scratch *s)
{
    int per_kv = op->n_heads / op->kv_heads, rows = 0;
    float scale = (float)((double)op->floats[0] * 1.4426950408889634);
    for (int t = g->token0; t < g->token0 + g->n_tokens; t++)
        for (int i = 0; i < per_kv; i++, rows++) {
            const float *q = plan->buffers[op->src[0]] + t * plan->strides[op->src[0]] + (head * per_kv + i) * op->head_dim;
            float *scaled = (float *)(uintptr_t)s->q[rows];
            for (int d = 0; d < op->head_dim; d++)
                scaled[d] = q[d] * scale;
            s->pos[rows] = plan->batch.positions[t];
            s->lo[rows] = op->window > 0 && s->pos[rows] >= op->window ? s->pos[rows] - op->window + 1 : 0;
        }
    return rows;
}

static void merge(pl_plan *plan, float *total, const float *part)
{
    plan->kernels->attention_merge(total, part, (int)plan->attention.state_floats - PL_STATE_HEAD);
}

static void write_rows(pl_plan *plan, const pl_op *op, const pl_group *g, int head, int rows, float *const *total)
{
    int per_kv = op->n_heads / op->kv_heads;
    for (int r = 0; r < rows; r++) {
        float *out = plan->buffers[op->dst[0]] + (g->token0 + r / per_kv) * plan->strides[op->dst[0]];
        plan->kernels->attention_finish(total[r], op->v_dim, out + (head * per_kv + r % per_kv) * op->v_dim);
    }
}

/* Every split of the group's rows, in order, by this thread. */
static void attend_whole(pl_plan *plan, const pl_op *op, const pl_group *g, int head, item_scratch *s)
{
    int rows = load_rows(plan, op, g, head, s);
    for (int r = 0; r < rows; r++)
        state_clear(plan, s->total[r]);
    for (int64_t split = s->lo[0] / PL_SPLIT; split <= s->pos[rows - 1] / PL_SPLIT; split++) {
        attend_split(plan, op, g, head, split, rows, s, s->part);
        for (int r = 0; r < rows; r++)
            merge(plan, s->total[r], s->part[r]);
    }
    write_rows(plan, op, g, head, rows, s->total);
}

/* One split of one token; the last one to finish merges all of them in order. */
static void attend_part(pl_plan *plan, const pl_op *op, const pl_group *g, int head, int split, item_scratch *s)
{
    pl_attention_work *w = &plan->attention;
    int rows = load_rows(plan, op, g, head, s);
    float *parts = w->parts + (g->part0 + (int64_t)head * g->n_splits * rows) * w->state_floats;
    for (int r = 0; r < rows; r++)
        s->part[r] = parts + ((int64_t)split * rows + r) * w->state_floats;
    attend_split(plan, op, g, head, split, rows, s, s->part);
    _Atomic int32_t *pending = &w->pending[(g - w->groups) * plan->cache->kv_heads + head];
    if (atomic_fetch_sub_explicit(pending, 1, memory_order_acq_rel) != 1)
        return;
    atomic_store_explicit(pending, g->n_splits, memory_order_relaxed); /* for the next layer */
    for (int r = 0; r < rows; r++) {
        state_clear(plan, s->total[r]);
        for (int i = 0; i < g->n_splits; i++)
            merge(plan, s->total[r], parts + ((int64_t)i * rows + r) * w->state_floats);
    }
    write_rows(plan, op, g, head, rows, s->total);
}

/* What an item is. In a prompt all groups of a head, or those of a thread's section, come before the next head:
 * its pages are read again and again, and one head's may stay in the cache where all heads' do not. */
static const pl_group *group_of(const pl_attention_work *w, int64_t item, const pl_share *share, int kv_heads, int *head, int *split)
{
    int low = 0, high = w->n_groups - 1; /* the last group whose first item is at or before this one */
    if (!w->apart) {
        int64_t groups = (share->last - share->first) / kv_heads, at = item - share->first;
        *head = (int)(at / groups);
        *split = 0;
        return &w->groups[share->first / kv_heads + at % groups];
    }
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (w->groups[middle].item0 <= item)
            low = middle;
        else
            high = middle - 1;
    }
    const pl_group *g = &w->groups[low];
    *head = (int)((item - g->item0) / g->n_splits);
    *split = (int)((item - g->item0) % g->n_splits);
    return g;
}

int64_t pl_attention_run(pl_plan *plan, const pl_op *op, pl_share *share)
{
    pl_attention_work *w = &plan->attention;
    int64_t item, end, n_items = w->n_items;
    while (pl_share_take(share, n_items, w->apart ? 1 : op->kv_heads, 1, &item, &end)) {
        int head, split;
        const pl_group *g = group_of(w, item, share, op->kv_heads, &head, &split);
        item_scratch s = scratch_of(plan, share->thread);
        if (g->n_splits > 1)
            attend_part(plan, op, g, head, split, &s);
        else
            attend_whole(plan, op, g, head, &s);
        pl_share_done(share, 1);
    }
    return n_items;
}
