/* Attention of a batch: which queries are attended together, and where long contexts are cut. */
#include "exec/plan.h"
#include "platform/os.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PARTS 1024 /* partial states kept at most, beyond what one token over the whole context needs */

static int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }
static int64_t padded32(int64_t n) { return (n + 31) / 32 * 32; }

/* ---- the room of an item ---- */

/* A key tile, a value tile and the scales of a value tile, as float32, and rounded queries. */
static int64_t tiles_floats(pl_item_shape s)
{
    return (padded32(s.k_dim) + padded32(s.v_dim)) * PL_TILE + padded32(s.v_dim) + s.rows * padded32(s.k_dim);
}

static int64_t state_floats(pl_item_shape s) { return PL_STATE_HEAD + padded32(s.v_dim); }
static int64_t q_stride(pl_item_shape s) { return (s.k_dim + 15) / 16 * 16; }

int64_t pl_item_scratch_bytes(pl_item_shape s)
{
    return align64(tiles_floats(s) * 4) + align64(2 * s.rows * state_floats(s) * 4) + align64(s.rows * q_stride(s) * 4) +
           align64(s.rows * (int64_t)(3 * sizeof(void *) + 2 * sizeof(int32_t)));
}

pl_item_scratch pl_item_scratch_at(uint8_t *p, pl_item_shape shape)
{
    pl_item_scratch s = {.state_floats = state_floats(shape)};
    s.tiles = (float *)(void *)p;
    p += align64(tiles_floats(shape) * 4);
    float *states = (float *)(void *)p;
    p += align64(2 * shape.rows * s.state_floats * 4);
    float *q = (float *)(void *)p;
    p += align64(shape.rows * q_stride(shape) * 4);
    s.total = (float **)(void *)p;
    s.part = s.total + shape.rows;
    s.q = (const float **)(void *)(s.part + shape.rows);
    s.pos = (int32_t *)(void *)(s.q + shape.rows);
    s.lo = s.pos + shape.rows;
    for (int r = 0; r < shape.rows; r++) {
        s.total[r] = states + 2 * r * s.state_floats;
        s.part[r] = s.total[r] + s.state_floats;
        s.q[r] = q + r * q_stride(shape);
    }
    return s;
}

void pl_state_clear(float *state, int64_t n)
{
    memset(state, 0, sizeof(float) * (size_t)n);
    state[0] = -INFINITY;
}

/* ---- schedules ---- */

pl_attention_schedule *pl_schedule_of(const pl_attention_work *work, int space, int causal)
{
    for (int i = 0; i < work->n_schedules; i++)
        if (work->schedules[i].space == space && work->schedules[i].causal == (causal != 0))
            return &work->schedules[i];
    return NULL;
}

pl_item_shape pl_schedule_shape(const pl_attention_schedule *schedule, const pl_cache *space)
{
    return (pl_item_shape){space->k.head_dim, space->v.head_dim, schedule->tokens_max * schedule->heads_per_kv};
}

/* One schedule for each space and kind of attention, for the op that has most heads. */
static int make_schedules(pl_attention_work *w, const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops)
{
    w->schedules = calloc((size_t)n_spaces * 2 + 1, sizeof *w->schedules);
    if (!w->schedules)
        return PL_ENOMEM;
    for (int i = 0; i < n_ops; i++) {
        const pl_op_attention *f = &ops[i].attention;
        if (ops[i].head.kind != PL_OP_attention)
            continue;
        if (f->space < 0 || f->space >= n_spaces || f->n_heads < 1)
            return PL_EINVAL;
        pl_attention_schedule *s = pl_schedule_of(w, f->space, f->causal);
        if (!s) {
            s = &w->schedules[w->n_schedules++];
            *s = (pl_attention_schedule){.space = f->space, .causal = f->causal != 0, .heads_per_kv = 1};
        }
        int heads = f->n_heads / spaces[f->space]->kv_heads;
        s->heads_per_kv = heads > s->heads_per_kv ? heads : s->heads_per_kv;
        s->tokens_max = PL_ROWS_WANTED / s->heads_per_kv > 1 ? PL_ROWS_WANTED / s->heads_per_kv : 1;
    }
    return PL_OK;
}

int64_t pl_attention_measure(pl_attention_work *w, const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops,
                             int n_ctx)
{
    int code = make_schedules(w, spaces, n_spaces, ops, n_ops);
    if (code != PL_OK)
        return code;
    for (int i = 0; i < w->n_schedules; i++) {
        const pl_attention_schedule *s = &w->schedules[i];
        const pl_cache *c = spaces[s->space];
        pl_item_shape shape = pl_schedule_shape(s, c);
        int64_t states = ((int64_t)n_ctx / PL_SPLIT + 1) * c->kv_heads * s->heads_per_kv + PARTS,
                bytes = pl_item_scratch_bytes(shape);
        w->part_capacity = states > w->part_capacity ? states : w->part_capacity;
        w->state_floats = state_floats(shape) > w->state_floats ? state_floats(shape) : w->state_floats;
        w->scratch_bytes = bytes > w->scratch_bytes ? bytes : w->scratch_bytes;
    }
    return w->part_capacity * w->state_floats * 4;
}

int pl_attention_init(pl_plan *plan)
{
    pl_attention_work *w = &plan->attention;
    for (int i = 0; i < w->n_schedules; i++) {
        pl_attention_schedule *s = &w->schedules[i];
        s->groups = calloc((size_t)plan->max_tokens, sizeof *s->groups);
        s->pending = calloc((size_t)plan->max_tokens * (size_t)plan->spaces[s->space]->kv_heads, sizeof *s->pending);
        if (!s->groups || !s->pending)
            return PL_ENOMEM;
    }
    if (w->part_capacity == 0)
        return PL_OK;
    w->parts = pl_alloc((size_t)(w->part_capacity * w->state_floats * 4), 0);
    return w->parts ? PL_OK : PL_ENOMEM;
}

void pl_attention_free(pl_attention_work *w)
{
    for (int i = 0; i < w->n_schedules; i++) {
        free(w->schedules[i].groups);
        free((void *)w->schedules[i].pending);
    }
    free(w->schedules);
    pl_release(w->parts, (size_t)(w->part_capacity * w->state_floats * 4));
}

/* The token after the last one of the sequence that token `t` belongs to. */
static int sequence_end(const pl_batch *b, int t)
{
    int end = t + 1;
    while (end < b->n_tokens && b->sequences[end] == b->sequences[t])
        end++;
    return end;
}

/* Keys that attention which is not causal sees: what the batch says, or the sequence's positions. */
static int64_t keys_of(const pl_batch *b, int space, int t, int end)
{
    return b->lengths && b->lengths[space] ? b->lengths[space][b->sequences[t]] : b->positions[end - 1] + 1;
}

static void prepare(pl_plan *plan, pl_attention_schedule *s)
{
    const pl_batch *b = &plan->batch;
    int kv_heads = plan->spaces[s->space]->kv_heads;
    int64_t parts = 0;
    s->n_groups = 0;
    s->n_items = 0;
    s->apart = 0;
    for (int t = 0, last = 0; t < b->n_tokens;) {
        last = t < last ? last : sequence_end(b, t);
        int end = last - t < s->tokens_max ? last : t + s->tokens_max;
        int64_t keys = s->causal ? -1 : keys_of(b, s->space, t, last);
        int n_splits = (int)((s->causal ? b->positions[t] : keys > 0 ? keys - 1 : 0) / PL_SPLIT + 1);
        int64_t states = (int64_t)n_splits * s->heads_per_kv * kv_heads;
        if (end - t > 1 || parts + states > plan->attention.part_capacity)
            n_splits = 1;
        s->groups[s->n_groups++] = (pl_group){b->sequences[t], t, end - t, n_splits, s->n_items, parts, keys};
        s->n_items += (int64_t)n_splits * kv_heads;
        if (n_splits > 1) {
            parts += states;
            s->apart = 1;
        }
        t = end;
    }
    s->apart |= s->n_groups <= PL_SHARED;
    for (int i = 0; i < s->n_groups * kv_heads; i++)
        atomic_store_explicit(&s->pending[i], s->groups[i / kv_heads].n_splits, memory_order_relaxed);
}

void pl_attention_prepare(pl_plan *plan)
{
    for (int i = 0; i < plan->attention.n_schedules; i++)
        prepare(plan, &plan->attention.schedules[i]);
}
