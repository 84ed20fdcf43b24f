/* Attention among the tiles of one image, of which some are padding (Llama 3.2's vision tower).
 *
 * A tile has `tile_tokens` tokens and, after them, rows of padding. The first `n_tiles` tiles are the image, all after them
 * are padding. The tokens of the image see everything, padding included; padding sees the tokens of the image only. Rows
 * of padding that are equal give equal results, so that one of them can stand for several: those after the tokens of each
 * tile for `padding_weight` of them, a whole tile of padding for `tile_weight` tiles. A key that stands for w keys counts
 * w times: its weight in the softmax is multiplied by w.
 *
 * Keys are laid out by what they stand for: tokens of the image, their padding, tokens of padding tiles, theirs. An item is
 * a KV head and some thousands of queries, counted as keys are: its thread lays the head's keys out in its scratch. */
#include "exec/batch_keys.h"
#include <math.h>

enum { KINDS = 4, ITEM_QUERIES = 2048 }; /* of an item: laying keys out is 2 % of its work */

/* Rows of a kind: `per_tile` of each of `tiles` tiles, from row `first` on. */
typedef struct {
    int first, tiles, per_tile, weight;
    int64_t key0; /* the first key */
} row_kind;

typedef struct {
    pl_plan *plan;
    const pl_op_tile_attention *op;
    pl_batch_keys keys;
    row_kind kinds[KINDS];
    int64_t n_keys;
} tile_job;

static pl_batch_keys keys_of(const pl_op *op) { return (pl_batch_keys)PL_BATCH_KEYS(&op->tile_attention); }

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
    pl_batch_keys keys = keys_of(op);
    pl_batch_keys_init(&keys, buffers);
    return pl_batch_keys_scratch(&keys, max_tokens);
}

const char *check_tile_attention(const pl_plan *plan, const pl_op *op)
{
    const pl_op_tile_attention *f = &op->tile_attention;
    const pl_batch_keys keys = keys_of(op);
    if (f->n_tiles < 1 || f->tile_tokens < 1 || f->tile_rows < f->tile_tokens || f->tile_rows > plan->max_tokens / f->n_tiles)
        return "more tiles than a batch can hold, or none";
    if (f->padding_weight < 1 || f->tile_weight < 1 || f->padding_weight > 1 << 12 || f->tile_weight > 1 << 12)
        return "a weight is not from 1 to 4096";
    return pl_batch_keys_check(plan, &keys);
}

/* Keys and values of one head, by what they stand for. */
static void store_keys(const tile_job *job, int64_t head, const pl_batch_room *room)
{
    for (int kind = 0; kind < KINDS; kind++) {
        const row_kind *of = &job->kinds[kind];
        for (int i = 0; i < of->tiles * of->per_tile; i++)
            pl_batch_keys_store(&job->keys, job->plan, room, of->key0 + i, row_of(job, of, i), head);
    }
}

/* Adds the keys of a kind to the states of the first `rows` queries, split by split. */
static void attend_kind(const tile_job *job, const row_kind *of, int rows, pl_batch_room *room)
{
    const int64_t end = of->key0 + (int64_t)of->tiles * of->per_tile;
    const float log_weight = (float)log2((double)of->weight);
    for (int r = 0; r < rows; r++) {
        room->states.lo[r] = (int32_t)of->key0;
        room->states.pos[r] = (int32_t)end - 1;
    }
    for (int64_t begin = of->key0 / PL_SPLIT * PL_SPLIT; begin < end; begin += PL_SPLIT)
        pl_batch_keys_attend(&job->keys, job->plan, room, rows, begin > of->key0 ? begin : of->key0 / PL_TILE * PL_TILE,
                             begin + PL_SPLIT < end ? begin + PL_SPLIT : end, log_weight);
}

/* Queries [i0, i1) of a kind. */
static void attend(const tile_job *job, int kind, int i0, int i1, int64_t head, pl_batch_room *room)
{
    const row_kind *of = &job->kinds[kind];
    const int per_kv = job->keys.per_kv;
    for (int i = i0; i < i1; i++)
        pl_batch_keys_load(&job->keys, job->plan, room, (i - i0) * per_kv, row_of(job, of, i), head);
    for (int seen = 0; seen < (kind == 0 ? KINDS : 1); seen++)
        attend_kind(job, &job->kinds[seen], (i1 - i0) * per_kv, room);
    for (int i = i0; i < i1; i++)
        pl_batch_keys_write(&job->keys, job->plan, room, (i - i0) * per_kv, row_of(job, of, i), head);
}

/* Queries [first, last) of a KV head. */
static void attend_piece(const tile_job *job, int64_t head, int64_t first, int64_t last, int thread)
{
    const int tokens = job->keys.tokens;
    pl_batch_room room = pl_batch_keys_room(&job->keys, job->plan, thread, job->n_keys);
    store_keys(job, head, &room);
    for (int kind = 0; kind < KINDS; kind++) {
        const row_kind *of = &job->kinds[kind];
        const int64_t n = (int64_t)of->tiles * of->per_tile, end = last - of->key0 < n ? last - of->key0 : n;
        for (int64_t i = first > of->key0 ? first - of->key0 : 0; i < end; i += tokens)
            attend(job, kind, (int)i, (int)(i + tokens < end ? i + tokens : end), head, &room);
    }
}

int64_t run_tile_attention(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_tile_attention *f = &op->tile_attention;
    tile_job job = {.plan = plan, .op = f, .keys = keys_of(op)};
    const int n_rows = plan->batch.n_tokens;
    const int64_t pieces = (n_rows + ITEM_QUERIES - 1) / ITEM_QUERIES, n_items = f->kv_heads * pieces;
    int64_t begin, end;
    pl_batch_keys_init(&job.keys, plan->buffers);
    while (PL_TAKE(n_items, 1, 1)) {
        if (n_rows % f->tile_rows || n_rows < f->n_tiles * f->tile_rows)
            pl_plan_fail(plan, PL_EINVAL); /* not whole tiles, or not all of the image */
        else {
            divide_rows(&job, n_rows);
            const int64_t head = begin / pieces, piece = begin % pieces;
            attend_piece(&job, head, job.n_keys * piece / pieces, job.n_keys * (piece + 1) / pieces, queue->thread);
        }
        PL_DONE();
    }
    return n_items;
}
