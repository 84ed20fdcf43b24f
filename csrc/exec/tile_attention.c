/* Attention among the tiles of one image, of which some are padding (Llama 3.2's vision tower).
 *
 * A tile has `tile_tokens` tokens and, after them, rows of padding. The first `n_tiles` tiles are the image, all after them
 * are padding. The tokens of the image see everything, padding included; padding sees the tokens of the image only. Rows
 * of padding that are equal give equal results, so that one of them can stand for several: those after the tokens of each
 * tile for `padding_weight` of them, a whole tile of padding for `tile_weight` tiles. A key that stands for w keys counts
 * w times: its weight in the softmax is multiplied by w.
 *
 * Keys are laid out by what they stand for: tokens of the image, their padding, tokens of padding tiles, theirs. An item is
 * a KV head: its thread lays its keys out in its scratch. */
#include "exec/attention.h"
#include "exec/plan.h"
#include "types/blocks.h"
#include <math.h>
#include <string.h>

enum { KINDS = 4 };

/* Rows of a kind: `per_tile` of each of `tiles` tiles, from row `first` on. */
typedef struct {
    int first, tiles, per_tile, weight;
    int64_t key0; /* the first key */
} row_kind;

typedef struct {
    pl_plan *plan;
    const pl_op_tile_attention *op;
    pl_kv_tile k, v;
    int per_kv, tokens; /* query heads of a KV head; tokens of an item at most */
    pl_item_shape shape;
    row_kind kinds[KINDS];
    int64_t n_keys;
} tile_job;

static int64_t align64(int64_t n) { return (n + 63) / 64 * 64; }
static int64_t n_pages(int64_t n_keys) { return (n_keys + PL_TILE - 1) / PL_TILE; }

/* `op`'s shapes; its widths must be whole heads. */
static tile_job job_of(const pl_op_tile_attention *op, const pl_plan_buffer *buffers)
{
    tile_job job = {.op = op, .per_kv = op->n_heads / op->kv_heads};
    pl_kv_tile_init(&job.k, PL_TYPE_F32, (int)(buffers[op->k].width / op->kv_heads));
    pl_kv_tile_init(&job.v, PL_TYPE_F32, (int)(buffers[op->v].width / op->kv_heads));
    job.tokens = PL_ROWS_WANTED / job.per_kv > 1 ? PL_ROWS_WANTED / job.per_kv : 1;
    job.shape = (pl_item_shape){job.k.head_dim, job.v.head_dim, job.tokens * job.per_kv};
    return job;
}

/* Which rows of a batch are of which kind. */
static void divide_rows(tile_job *job, int n_rows)
{
    const pl_op_tile_attention *f = job->op;
    const int after = n_rows / f->tile_rows - f->n_tiles, padding = f->tile_rows - f->tile_tokens;
    const int end = f->n_tiles * f->tile_rows;
    row_kind kinds[KINDS] = {
        {0, f->n_tiles, f->tile_tokens, 1, 0},
        {f->tile_tokens, f->n_tiles, padding, f->padding_weight, 0},
        {end, after, f->tile_tokens, f->tile_weight, 0},
        {end + f->tile_tokens, after, padding, f->padding_weight * f->tile_weight, 0},
    };
    job->n_keys = 0;
    for (int i = 0; i < KINDS; i++) {
        kinds[i].key0 = job->n_keys;
        job->n_keys += (int64_t)kinds[i].tiles * kinds[i].per_tile;
        job->kinds[i] = kinds[i];
    }
}

static int row_of(const tile_job *job, const row_kind *kind, int i)
{
    return kind->first + i / kind->per_tile * job->op->tile_rows + i % kind->per_tile;
}

int64_t pl_tile_attention_scratch(const pl_op *op, const pl_plan_buffer *buffers, int n_buffers, int max_tokens)
{
    (void)n_buffers;
    tile_job job = job_of(&op->tile_attention, buffers);
    return align64(pl_item_scratch_bytes(job.shape)) + n_pages(max_tokens) * (job.k.bytes + job.v.bytes) +
           align64(n_pages(max_tokens) * (int64_t)sizeof(uint8_t *));
}

const char *check_tile_attention(const pl_plan *plan, const pl_op *op)
{
    const pl_op_tile_attention *f = &op->tile_attention;
    const pl_plan_buffer *b = plan->buffers;
    if (f->kv_heads < 1 || f->n_heads < 1 || f->n_heads > PL_MAX_HEADS || f->n_heads % f->kv_heads)
        return "n_heads is not a multiple of kv_heads";
    int64_t k_dim = b[f->k].width / f->kv_heads, v_dim = b[f->v].width / f->kv_heads;
    if (b[f->k].width % f->kv_heads || b[f->v].width % f->kv_heads || k_dim < 2 || k_dim % 2 || k_dim > PL_MAX_HEAD_DIM ||
        v_dim < 1 || v_dim > PL_MAX_HEAD_DIM)
        return "k or v is not as wide as whole heads of 2 to 1024 elements";
    if (b[f->q].width != f->n_heads * k_dim || b[f->out].width != f->n_heads * v_dim)
        return "q or out is not as wide as all heads";
    if (f->n_tiles < 1 || f->tile_tokens < 1 || f->tile_rows < f->tile_tokens || f->tile_rows > plan->max_tokens / f->n_tiles)
        return "more tiles than a batch can hold, or none";
    if (f->padding_weight < 1 || f->tile_weight < 1 || f->padding_weight > 1 << 12 || f->tile_weight > 1 << 12)
        return "a weight is not from 1 to 4096";
    return f->out == f->q || f->out == f->k || f->out == f->v ? "out is q, k or v, whose rows are still needed" : NULL;
}

/* Keys and values of one head as pages, the unused slots of the last one zero. */
static void fill_pages(const tile_job *job, int64_t head, uint8_t *const *pages)
{
    for (int64_t i = 0; i < n_pages(job->n_keys); i++)
        memset(pages[i], 0, (size_t)(job->k.bytes + job->v.bytes));
    for (int kind = 0; kind < KINDS; kind++) {
        const row_kind *of = &job->kinds[kind];
        for (int i = 0; i < of->tiles * of->per_tile; i++) {
            const int row = row_of(job, of, i);
            const int64_t key = of->key0 + i;
            uint8_t *page = pages[key / PL_TILE];
            job->plan->kernels->store_k(&job->k, page, (int)(key % PL_TILE),
                                        pl_row(job->plan, job->op->k, row) + head * job->k.head_dim);
            job->plan->kernels->store_v(&job->v, page + job->k.bytes, (int)(key % PL_TILE),
                                        pl_row(job->plan, job->op->v, row) + head * job->v.head_dim);
        }
    }
}

/* Adds the keys of a kind to the states of the first `rows` queries, split by split. */
static void attend_kind(const tile_job *job, const row_kind *of, int rows, uint8_t *const *pages, const pl_item_scratch *s)
{
    const int64_t end = of->key0 + (int64_t)of->tiles * of->per_tile;
    const float log_weight = (float)log2((double)of->weight);
    for (int64_t begin = of->key0 / PL_SPLIT * PL_SPLIT; begin < end; begin += PL_SPLIT) {
        const int64_t first = begin > of->key0 ? begin : of->key0 / PL_TILE * PL_TILE;
        for (int r = 0; r < rows; r++) {
            pl_state_clear(s->part[r], s->state_floats);
            s->lo[r] = (int32_t)of->key0;
            s->pos[r] = (int32_t)end - 1;
        }
        job->plan->kernels->attention(&(pl_attention){
            .k = &job->k,
            .v = &job->v,
            .pages = pages,
            .k_offset = 0,
            .v_offset = job->k.bytes,
            .key0 = first,
            .key1 = begin + PL_SPLIT < end ? begin + PL_SPLIT : end,
            .n_rows = rows,
            .q = s->q,
            .pos = s->pos,
            .lo = s->lo,
            .state = s->part,
            .scratch = s->tiles,
        });
        for (int r = 0; r < rows; r++) {
            s->part[r][0] += log_weight; /* the state's reference: all its sums, times the weight */
            job->plan->kernels->attention_merge(s->total[r], s->part[r], (int)s->state_floats - PL_STATE_HEAD);
        }
    }
}

/* Queries [i0, i1) of a kind. */
static void attend(const tile_job *job, int kind, int i0, int i1, int64_t head, uint8_t *const *pages, const pl_item_scratch *s)
{
    const row_kind *of = &job->kinds[kind];
    const float scale = (float)((double)job->op->scale * 1.4426950408889634);
    int rows = 0;
    for (int i = i0; i < i1; i++)
        for (int h = 0; h < job->per_kv; h++, rows++) {
            const float *q = pl_row(job->plan, job->op->q, row_of(job, of, i)) + (head * job->per_kv + h) * job->k.head_dim;
            float *scaled = (float *)(uintptr_t)s->q[rows];
            for (int d = 0; d < job->k.head_dim; d++)
                scaled[d] = q[d] * scale;
            pl_state_clear(s->total[rows], s->state_floats);
        }
    for (int seen = 0; seen < (kind == 0 ? KINDS : 1); seen++)
        attend_kind(job, &job->kinds[seen], rows, pages, s);
    for (int r = 0; r < rows; r++)
        job->plan->kernels->attention_finish(s->total[r], job->v.head_dim,
                                             pl_row(job->plan, job->op->out, row_of(job, of, i0 + r / job->per_kv)) +
                                                 (head * job->per_kv + r % job->per_kv) * job->v.head_dim);
}

int64_t run_tile_attention(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_tile_attention *f = &op->tile_attention;
    int64_t begin, end;
    tile_job job = job_of(f, plan->buffers);
    job.plan = plan;
    while (PL_TAKE(f->kv_heads, 1, 1)) {
        const int n_rows = plan->batch.n_tokens;
        if (n_rows % f->tile_rows || n_rows < f->n_tiles * f->tile_rows)
            pl_plan_fail(plan, PL_EINVAL); /* not whole tiles, or not all of the image */
        else {
            divide_rows(&job, n_rows);
            uint8_t *room = pl_scratch(plan, queue->thread);
            const pl_item_scratch s = pl_item_scratch_at(room, job.shape);
            uint8_t *memory = room + align64(pl_item_scratch_bytes(job.shape));
            uint8_t **pages = (uint8_t **)(void *)(memory + n_pages(job.n_keys) * (job.k.bytes + job.v.bytes));
            for (int64_t i = 0; i < n_pages(job.n_keys); i++)
                pages[i] = memory + i * (job.k.bytes + job.v.bytes);
            fill_pages(&job, begin, pages);
            for (int kind = 0; kind < KINDS; kind++)
                for (int i = 0, n = job.kinds[kind].tiles * job.kinds[kind].per_tile; i < n; i += job.tokens)
                    attend(&job, kind, i, i + job.tokens < n ? i + job.tokens : n, begin, pages, &s);
        }
        PL_DONE();
    }
    return f->kv_heads;
}
