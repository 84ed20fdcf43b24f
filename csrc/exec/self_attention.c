/* Attention among all tokens that a sequence has in the batch, without a cache: what encoders do.
 *
 * An item is a sequence and a KV head. Its thread lays keys and values out as float32 tiles in its scratch and attends group
 * after group of queries to them, with the kernels and the splits of attention over pages. A sequence must therefore be in
 * the batch whole: that is how encoders see it. */
#include "exec/attention.h"
#include "exec/plan.h"
#include "types/blocks.h"
#include <string.h>

typedef struct {
    pl_plan *plan;
    const pl_op_self_attention *op;
    pl_kv_tile k, v;
    int per_kv;
    pl_item_shape shape;
} self_job;

static int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }

/* `op`'s shapes; its widths must be whole heads. */
static self_job job_of(const pl_op_self_attention *op, const pl_plan_buffer *buffers)
{
    self_job job = {.op = op, .per_kv = op->n_heads / op->kv_heads};
    pl_kv_tile_init(&job.k, PL_TYPE_F32, (int)(buffers[op->k].width / op->kv_heads));
    pl_kv_tile_init(&job.v, PL_TYPE_F32, (int)(buffers[op->v].width / op->kv_heads));
    int tokens = PL_ROWS_WANTED / job.per_kv > 1 ? PL_ROWS_WANTED / job.per_kv : 1;
    job.shape = (pl_item_shape){job.k.head_dim, job.v.head_dim, tokens * job.per_kv};
    return job;
}

static int64_t n_tiles(int64_t n_tokens) { return (n_tokens + PL_TILE - 1) / PL_TILE; }

int64_t pl_self_attention_scratch(const pl_op *op, const pl_plan_buffer *buffers, int n_buffers, int max_tokens)
{
    (void)n_buffers;
    self_job job = job_of(&op->self_attention, buffers);
    return align64(pl_item_scratch_bytes(job.shape)) + n_tiles(max_tokens) * (job.k.bytes + job.v.bytes) +
           align64(n_tiles(max_tokens) * (int64_t)sizeof(uint8_t *));
}

const char *check_self_attention(const pl_plan *plan, const pl_op *op)
{
    const pl_op_self_attention *f = &op->self_attention;
    const pl_plan_buffer *b = plan->buffers;
    if (f->kv_heads < 1 || f->n_heads < 1 || f->n_heads > PL_MAX_HEADS || f->n_heads % f->kv_heads)
        return "n_heads is not a multiple of kv_heads";
    int64_t k_dim = b[f->k].width / f->kv_heads, v_dim = b[f->v].width / f->kv_heads;
    if (b[f->k].width % f->kv_heads || b[f->v].width % f->kv_heads || k_dim < 2 || k_dim % 2 || k_dim > PL_MAX_HEAD_DIM ||
        v_dim < 1 || v_dim > PL_MAX_HEAD_DIM)
        return "k or v is not as wide as whole heads of 2 to 1024 elements";
    if (b[f->q].width != f->n_heads * k_dim || b[f->out].width != f->n_heads * v_dim)
        return "q or out is not as wide as all heads";
    return f->out == f->q || f->out == f->k || f->out == f->v ? "out is q, k or v, whose rows are still needed" : NULL;
}

void pl_tokens_of(const pl_batch *b, int64_t index, int *token0, int *token1)
{
    int t = 0;
    for (int64_t i = 0;; i++) {
        *token0 = t;
        while (t < b->n_tokens && b->sequences[t] == b->sequences[*token0])
            t++;
        *token1 = t;
        if (i == index)
            return;
    }
}

/* Keys and values of one head as tiles, the unused slots of the last one zero. */
static void fill_tiles(const self_job *job, int token0, int token1, int64_t head, uint8_t *const *tiles)
{
    for (int t = token0; t < token1; t++) {
        uint8_t *tile = tiles[(t - token0) / PL_TILE];
        if ((t - token0) % PL_TILE == 0)
            memset(tile, 0, (size_t)(job->k.bytes + job->v.bytes));
        job->plan->kernels->store_k(&job->k, tile, (t - token0) % PL_TILE,
                                    pl_row(job->plan, job->op->k, t) + head * job->k.head_dim);
        job->plan->kernels->store_v(&job->v, tile + job->k.bytes, (t - token0) % PL_TILE,
                                    pl_row(job->plan, job->op->v, t) + head * job->v.head_dim);
    }
}

/* Queries of tokens [t0, t1) against all keys. */
static void attend(const self_job *job, int t0, int t1, int64_t head, int n_keys, uint8_t *const *tiles, pl_item_scratch *s)
{
    const pl_kernels *kernels = job->plan->kernels;
    const float scale = (float)((double)job->op->scale * 1.4426950408889634);
    int rows = 0;
    for (int t = t0; t < t1; t++)
        for (int i = 0; i < job->per_kv; i++, rows++) {
            const float *q = pl_row(job->plan, job->op->q, t) + (head * job->per_kv + i) * job->k.head_dim;
            float *scaled = (float *)(uintptr_t)s->q[rows];
            for (int d = 0; d < job->k.head_dim; d++)
                scaled[d] = q[d] * scale;
            s->pos[rows] = n_keys - 1;
            s->lo[rows] = 0;
            pl_state_clear(s->total[rows], s->state_floats);
        }
    for (int key0 = 0; key0 < n_keys; key0 += PL_SPLIT) {
        for (int r = 0; r < rows; r++)
            pl_state_clear(s->part[r], s->state_floats);
        kernels->attention(&(pl_attention){
            .k = &job->k,
            .v = &job->v,
            .pages = tiles,
            .k_offset = 0,
            .v_offset = job->k.bytes,
            .key0 = key0,
            .key1 = key0 + PL_SPLIT < n_keys ? key0 + PL_SPLIT : n_keys,
            .n_rows = rows,
            .q = s->q,
            .pos = s->pos,
            .lo = s->lo,
            .state = s->part,
            .scratch = s->tiles,
        });
        for (int r = 0; r < rows; r++)
            kernels->attention_merge(s->total[r], s->part[r], (int)s->state_floats - PL_STATE_HEAD);
    }
    for (int r = 0; r < rows; r++)
        kernels->attention_finish(s->total[r], job->v.head_dim,
                                  pl_row(job->plan, job->op->out, t0 + r / job->per_kv) +
                                      (head * job->per_kv + r % job->per_kv) * job->v.head_dim);
}

int64_t run_self_attention(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_self_attention *f = &op->self_attention;
    int64_t begin, end, n_items = (int64_t)plan->batch.n_sequences * f->kv_heads;
    self_job job = job_of(f, plan->buffers);
    job.plan = plan;
    while (PL_TAKE(n_items, 1, 1)) {
        int token0, token1, tokens = job.shape.rows / job.per_kv;
        pl_tokens_of(&plan->batch, begin / f->kv_heads, &token0, &token1);
        uint8_t *room = pl_scratch(plan, queue->thread);
        pl_item_scratch s = pl_item_scratch_at(room, job.shape);
        uint8_t *memory = room + align64(pl_item_scratch_bytes(job.shape));
        uint8_t **tiles = (uint8_t **)(void *)(memory + n_tiles(token1 - token0) * (job.k.bytes + job.v.bytes));
        for (int64_t i = 0; i < n_tiles(token1 - token0); i++)
            tiles[i] = memory + i * (job.k.bytes + job.v.bytes);
        fill_tiles(&job, token0, token1, begin % f->kv_heads, tiles);
        for (int t = token0; t < token1; t += tokens)
            attend(&job, t, t + tokens < token1 ? t + tokens : token1, begin % f->kv_heads, token1 - token0, tiles, &s);
        PL_DONE();
    }
    return n_items;
}
