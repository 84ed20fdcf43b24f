/* Attention of a batch over the pages of a KV space: which thread attends which queries to which pages.
 *
 * Keys are cut into splits of PL_SPLIT positions. A query's softmax is computed per split and the splits are merged in
 * order, always. For a prompt one item does so split after split for a group of queries; for a single token over a long
 * context the splits are items of their own, and whichever finishes last merges. Both give the same bits. */
#include "exec/attention.h"
#include "exec/kv_rounding.h"
#include "exec/plan.h"
#include <math.h>
#include <string.h>

/* What the items of one op queue. */
typedef struct {
    pl_plan *plan;
    const pl_op_attention *op;
    const pl_cache *space;
    pl_attention_schedule *schedule;
    int per_kv; /* query heads of a KV head */
} attention_job;

/* One split of every row: softmax states of keys [split * PL_SPLIT, …) into states[row]. */
static void attend_split(const attention_job *job, const pl_group *g, int head, int64_t split, int rows, const pl_item_scratch *s,
                         float *const *states)
{
    int64_t offset = pl_cache_offset(job->space, job->op->layer, head), begin = split * PL_SPLIT;
    int64_t last = s->pos[rows - 1] + 1, end = begin + PL_SPLIT < last ? begin + PL_SPLIT : last,
            first = s->lo[0] / PL_TILE * PL_TILE;
    for (int r = 0; r < rows; r++)
        pl_state_clear(states[r], s->state_floats);
    job->plan->kernels->attention(&(pl_attention){
        .k = &job->space->k,
        .v = &job->space->v,
        .pages = (uint8_t *const *)(const void *)job->plan->batch.pages[job->op->space][g->sequence],
        .k_offset = offset,
        .v_offset = offset + job->space->k.bytes,
        .key0 = begin > first ? begin : first,
        .key1 = end,
        .ahead = last,
        .n_rows = rows,
        .q = s->q,
        .pos = s->pos,
        .lo = s->lo,
        .state = states,
        .scratch = s->tiles,
    });
}

/* The first key that a token at `position` sees. */
static int32_t first_key(const pl_op_attention *op, int32_t position)
{
    int32_t lo = op->window > 0 && position >= op->window ? position - op->window + 1 : 0;
    int32_t begin = op->chunk > 0 ? position - position % op->chunk : 0;
    return begin > lo ? begin : lo;
}

/* Copies the group's queries of one KV head, times the softmax scale and log2 e; returns how many rows. */
static int load_rows(const attention_job *job, const pl_group *g, int head, pl_item_scratch *s)
{
    const pl_batch *b = &job->plan->batch;
    const int head_dim = job->space->k.head_dim;
    const float *shrink = pl_key_rounding_of(job->space, job->op->layer, head).shrink;
    int rows = 0;
    float scale = (float)((double)job->op->scale * 1.4426950408889634);
    for (int t = g->token0; t < g->token0 + g->n_tokens; t++)
        for (int i = 0; i < job->per_kv; i++, rows++) {
            const float *q = pl_row(job->plan, job->op->q, t) + (head * job->per_kv + i) * head_dim;
            float *scaled = (float *)(uintptr_t)s->q[rows];
            for (int d = 0; d < head_dim; d++)
                scaled[d] = q[d] * scale;
            for (int d = 0; shrink && d < head_dim; d++)
                scaled[d] *= shrink[d];
            if (job->space->k.rotation)
                job->plan->kernels->rotate(scaled, head_dim, job->space->k.rotation);
            s->pos[rows] = g->keys < 0 ? b->positions[t] : (int32_t)g->keys - 1;
            s->lo[rows] = g->keys < 0 ? first_key(job->op, b->positions[t]) : 0;
        }
    return rows;
}

static void merge(const attention_job *job, float *total, const float *part, const pl_item_scratch *s)
{
    job->plan->kernels->attention_merge(total, part, (int)s->state_floats - PL_STATE_HEAD);
}

static void write_rows(const attention_job *job, const pl_group *g, int head, int rows, const pl_item_scratch *s)
{
    const int v_dim = job->space->v.head_dim;
    const float *shift = pl_value_shift_of(job->space, job->op->layer, head);
    for (int r = 0; r < rows; r++) {
        float *out =
            pl_row(job->plan, job->op->out, g->token0 + r / job->per_kv) + (head * job->per_kv + r % job->per_kv) * v_dim;
        if (s->pos[r] < 0) /* no keys: nothing was attended to */
            memset(out, 0, sizeof(float) * (size_t)v_dim);
        else
            job->plan->kernels->attention_finish(s->total[r], v_dim, out);
        for (int d = 0; shift && s->pos[r] >= 0 && d < v_dim; d++)
            out[d] += shift[d];
        if (job->space->v.rotation)
            job->plan->kernels->rotate(out, v_dim, job->space->v.rotation);
    }
}

/* Every split of the group's rows, in order, by this thread. */
static void attend_whole(const attention_job *job, const pl_group *g, int head, pl_item_scratch *s)
{
    int rows = load_rows(job, g, head, s);
    for (int r = 0; r < rows; r++)
        pl_state_clear(s->total[r], s->state_floats);
    for (int64_t split = s->lo[0] / PL_SPLIT; split <= s->pos[rows - 1] / PL_SPLIT; split++) {
        attend_split(job, g, head, split, rows, s, s->part);
        for (int r = 0; r < rows; r++)
            merge(job, s->total[r], s->part[r], s);
    }
    write_rows(job, g, head, rows, s);
}

/* One split of one token; the last one to finish merges all of them in order. */
static void attend_part(const attention_job *job, const pl_group *g, int head, int split, pl_item_scratch *s)
{
    const pl_attention_work *w = &job->plan->attention;
    int rows = load_rows(job, g, head, s);
    float *parts = w->parts + (g->part0 + (int64_t)head * g->n_splits * rows) * w->state_floats;
    for (int r = 0; r < rows; r++)
        s->part[r] = parts + ((int64_t)split * rows + r) * w->state_floats;
    attend_split(job, g, head, split, rows, s, s->part);
    _Atomic int32_t *pending = &job->schedule->pending[(g - job->schedule->groups) * job->space->kv_heads + head];
    if (atomic_fetch_sub_explicit(pending, 1, memory_order_acq_rel) != 1)
        return;
    atomic_store_explicit(pending, g->n_splits, memory_order_relaxed); /* for the next layer */
    for (int r = 0; r < rows; r++) {
        pl_state_clear(s->total[r], s->state_floats);
        for (int i = 0; i < g->n_splits; i++)
            merge(job, s->total[r], parts + ((int64_t)i * rows + r) * w->state_floats, s);
    }
    write_rows(job, g, head, rows, s);
}

/* What an item is. In a prompt all groups of a head, or those of a thread's part, come before the next head:
 * its pages are read again and again, and one head's may stay in the cache where all heads' do not. */
static const pl_group *group_of(const pl_attention_schedule *w, int64_t item, const pl_work_queue *queue, int kv_heads, int *head,
                                int *split)
{
    int low = 0, high = w->n_groups - 1; /* the last group whose first item is at or before this one */
    if (!w->apart) {
        int64_t groups = (queue->last - queue->first) / kv_heads, at = item - queue->first;
        *head = (int)(at / groups);
        *split = 0;
        return &w->groups[queue->first / kv_heads + at % groups];
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

int64_t run_attention(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_attention *f = &op->attention;
    attention_job job = {plan, f, plan->spaces[f->space], pl_schedule_of(&plan->attention, f->space, f->causal), 0};
    const int kv_heads = job.space->kv_heads;
    int64_t item, end, n_items = job.schedule->n_items;
    job.per_kv = f->n_heads / kv_heads;
    while (pl_queue_take(queue, n_items, job.schedule->apart ? 1 : kv_heads, 1, &item, &end)) {
        int head, split;
        const pl_group *g = group_of(job.schedule, item, queue, kv_heads, &head, &split);
        pl_item_scratch s = pl_item_scratch_at(pl_scratch(plan, queue->thread), pl_schedule_shape(job.schedule, job.space));
        if (g->n_splits > 1)
            attend_part(&job, g, head, split, &s);
        else
            attend_whole(&job, g, head, &s);
        pl_queue_done(queue, 1);
    }
    return n_items;
}

const char *check_attention(const pl_plan *plan, const pl_op *op)
{
    const pl_op_attention *f = &op->attention;
    if (f->space < 0 || f->space >= plan->n_spaces)
        return "there is no such KV space";
    const pl_cache *c = plan->spaces[f->space];
    if (f->layer < 0 || f->layer >= c->n_layers)
        return "the KV space has no such layer";
    if (f->n_heads < 1 || f->n_heads % c->kv_heads || f->n_heads > PL_MAX_HEADS)
        return "n_heads is not a multiple of the space's heads";
    if (f->window < 0 || f->chunk < 0 || (!f->causal && (f->window || f->chunk)))
        return "a window or chunk is for causal attention, and not negative";
    if (plan->buffers[f->q].width != (int64_t)f->n_heads * c->k.head_dim ||
        plan->buffers[f->out].width != (int64_t)f->n_heads * c->v.head_dim)
        return "q or out is not as wide as all heads";
    return f->q == f->out ? "out is q, whose rows are still needed" : NULL;
}
