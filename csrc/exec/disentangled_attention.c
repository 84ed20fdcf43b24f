/* Attention of DeBERTa (He et al. 2021, arXiv 2006.03654) among all tokens that a sequence has in the batch: content and
 * relative position are two vectors each,
 *
 *     score(i, j) = scale * (q_i . k_j + q_i . position_key[b] + position_query[b] . k_j),  b = buckets[i - j]
 *
 * An item is a sequence and a head. Its thread lays the head's keys and values out as panels, multiplies all keys with the
 * queries of positions, and then goes through the queries in blocks: three products give a block's scores, one its outputs.
 * Of the positions, those alone are multiplied that a block's distances have.
 * All products are those of float matrices, or of such in 16 bits if positions are, so that a row's bits depend on its own
 * sequence only. */
#include "exec/attention.h"
#include "api.h"
#include "exec/plan.h"
#include "types/blocks.h"
#include "types/matrix.h"
#include "types/panel.h"
#include <string.h>

#define LOG2_E 1.44269504f
#define TOKENS 32  /* of values in panels of int16: whole blocks */
#define QUERIES 64 /* of a block: whole tiles of the products and of the softmax */
#define RUN 16     /* neighbouring distances that are looked at for buckets of their own, */
#define NEAR 8     /* or for some that are near each other */

/* Sizes of an item, in elements. */
typedef struct {
    int64_t tokens; /* of a sequence at most */
    int64_t k_dim, v_dim, v_padded, positions, positions_stride;
    int type; /* of panels: float32, or int16 as those of positions are */
} item_sizes;

/* An item's room. Keys and values are in the reverse order of tokens: distances then grow along a row of scores. */
typedef struct {
    uint8_t *k, *v;                           /* panels: (tokens, k_dim), (v_dim, tokens), the latter padded to TOKENS */
    float *v_rows;                            /* (v_padded, tokens) */
    float *by_key, *by_query, *scores, *sums; /* (tokens, positions), and of a block: (QUERIES, positions | tokens | v_dim) */
    int32_t *buckets;                         /* of distances 1 - tokens ... tokens - 1, and padding */
    uint8_t *runs;                            /* what buckets from there on are like (pl_position_softmax) */
    int64_t scores_stride, bytes;
} item_room;

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static item_sizes sizes_of(const pl_op_disentangled_attention *f, const pl_plan_buffer *buffers, int64_t tokens)
{
    item_sizes s = {.tokens = tokens, .positions = f->n_positions};
    s.k_dim = buffers[f->k].width / f->n_heads;
    s.v_dim = buffers[f->v].width / f->n_heads;
    s.v_padded = round_up(s.v_dim, PL_ROWS);
    const pl_matrix *first = f->positions.n && f->positions.items ? f->positions.items[0] : NULL;
    s.type = PL_TYPE_F32 | (first ? first->type & PL_INT16 : 0);
    s.positions_stride = round_up(s.positions, PL_ROWS) + PL_ROWS; /* rows do not crowd into the same cache sets */
    return s;
}

/* Distances, and what whole registers of them and whole tiles of queries read beyond the last. */
static int64_t buckets_of(int64_t tokens) { return 2 * tokens + 2 * QUERIES; }

/* Places it in `memory`; with NULL, only the bytes count. */
static item_room room_at(uint8_t *memory, const item_sizes *s)
{
    const int64_t padded = round_up(s->tokens, TOKENS), f = (int64_t)sizeof(float);
    item_room room = {.scores_stride = padded + PL_ROWS};
    int64_t at[10], sizes[9] = {padded * s->k_dim * f,
                               padded * s->v_padded * f,
                               s->tokens * s->positions_stride * f,
                               QUERIES * s->positions_stride * f,
                               QUERIES * room.scores_stride * f,
                               QUERIES * s->v_padded * f,
                               buckets_of(s->tokens) * (int64_t)sizeof(int32_t),
                               buckets_of(s->tokens),
                               padded * s->v_padded * f};
    at[0] = 0;
    for (int i = 0; i < 9; i++)
        at[i + 1] = at[i] + round_up(sizes[i], 64);
    room.bytes = at[9];
    if (!memory)
        return room;
    room.k = memory + at[0];
    room.v = memory + at[1];
    room.by_key = (float *)(void *)(memory + at[2]);
    room.by_query = (float *)(void *)(memory + at[3]);
    room.scores = (float *)(void *)(memory + at[4]);
    room.sums = (float *)(void *)(memory + at[5]);
    room.buckets = (int32_t *)(void *)(memory + at[6]);
    room.runs = memory + at[7];
    room.v_rows = (float *)(void *)(memory + at[8]);
    return room;
}

int64_t pl_disentangled_scratch(const pl_op *op, const pl_plan_buffer *buffers, int n_buffers, int max_tokens)
{
    const pl_op_disentangled_attention *f = &op->disentangled_attention;
    if (f->n_heads < 1 || f->k < 0 || f->k >= n_buffers || f->v < 0 || f->v >= n_buffers) /* not checked yet when measuring */
        return 0;
    const int64_t positions = (f->buckets.n + 1) / 2;
    item_sizes sizes = sizes_of(f, buffers, max_tokens < positions ? max_tokens : positions);
    return room_at(NULL, &sizes).bytes;
}

static const char *check_positions(const pl_op_disentangled_attention *f, int64_t k_dim, int n_ctx)
{
    if (f->positions.n != 2 * (int64_t)f->n_heads)
        return "there are not keys and queries of positions for each head";
    for (int64_t i = 0; i < f->positions.n; i++) {
        const pl_matrix *m = f->positions.items[i];
        const int other = (m->type ^ f->positions.items[0]->type) & PL_INT16;
        if (!pl_panel_is_float(m->type) || other || m->rows != f->n_positions || m->cols != k_dim)
            return "keys or queries of positions are not float rows as wide as a head";
    }
    if (f->buckets.n < 2 * (int64_t)n_ctx - 1 || f->buckets.n % 2 == 0)
        return "there is not a bucket for each distance";
    for (int64_t i = 0; i < f->buckets.n; i++)
        if (!(f->buckets.values[i] >= 0 && f->buckets.values[i] < (float)f->n_positions))
            return "a bucket is not among the positions";
    return NULL;
}

const char *check_disentangled_attention(const pl_plan *plan, const pl_op *op)
{
    const pl_op_disentangled_attention *f = &op->disentangled_attention;
    const pl_plan_buffer *b = plan->buffers;
    if (f->n_heads < 1 || f->n_heads > PL_MAX_HEADS || f->n_positions < 1 || f->n_positions > 1 << 20)
        return "n_heads or n_positions is out of range";
    int64_t k_dim = b[f->k].width / f->n_heads, v_dim = b[f->v].width / f->n_heads;
    if (b[f->k].width % f->n_heads || b[f->v].width % f->n_heads || k_dim > PL_MAX_HEAD_DIM || v_dim > PL_MAX_HEAD_DIM)
        return "k or v is not as wide as whole heads of 1 to 1024 elements";
    if (b[f->q].width != b[f->k].width || b[f->out].width != b[f->v].width)
        return "q or out is not as wide as all heads";
    if (f->out == f->q || f->out == f->k || f->out == f->v)
        return "out is q, k or v, whose rows are still needed";
    return check_positions(f, k_dim, plan->n_ctx);
}

/* out (n, out_stride) = rows x (n, x_stride) times panels [panel0, panel1) of a float matrix, transposed. */
static void multiply(const pl_plan *plan, int type, const uint8_t *matrix, int64_t panel0, int64_t panel1, int64_t cols,
                     const float *x, int64_t x_stride, int64_t n, float *out, int64_t out_stride)
{
    for (int64_t t = 0; t < n; t += PL_TOKENS)
        plan->kernels->matmul_float(&(pl_matmul){.type = type,
                                                 .panels = matrix,
                                                 .cols = cols,
                                                 .panel0 = panel0,
                                                 .panel1 = panel1,
                                                 .x = x,
                                                 .x_stride = x_stride,
                                                 .token0 = t,
                                                 .token1 = t + PL_TOKENS < n ? t + PL_TOKENS : n,
                                                 .out = out,
                                                 .out_stride = out_stride});
}

/* Products of n rows with positions, those alone that the buckets [bucket, bucket + n_buckets) are of. */
static void multiply_positions(const pl_plan *plan, const pl_matrix *m, const float *x, int64_t x_stride, int64_t n,
                               const item_sizes *s, const int32_t *buckets, int64_t n_buckets, float *out)
{
    int32_t first = buckets[0], last = buckets[0];
    for (int64_t i = 1; i < n_buckets; i++) {
        first = buckets[i] < first ? buckets[i] : first;
        last = buckets[i] > last ? buckets[i] : last;
    }
    multiply(plan, m->type, m->data, first / PL_ROWS, last / PL_ROWS + 1, m->cols, x, x_stride, n, out, s->positions_stride);
}

/* Values as a matrix of a row for each element. */
static void fill_values(const pl_plan *plan, const pl_op_disentangled_attention *f, const item_sizes *s, int64_t head, int last,
                        item_room *room)
{
    float *v = (float *)(void *)room->v;
    for (int64_t d = 0; d < s->v_dim; d += PL_ROWS) {
        const size_t wide = (size_t)(s->v_dim - d < PL_ROWS ? s->v_dim - d : PL_ROWS);
        for (int64_t t = 0; t < s->tokens; t++, v += PL_ROWS) {
            memset(v, 0, sizeof(float) * PL_ROWS);
            memcpy(v, pl_row(plan, f->v, last - t) + head * s->v_dim + d, sizeof(float) * wide);
        }
    }
}

/* The same in panels of int16, over whole blocks of tokens. */
static void fill_int16_values(const pl_plan *plan, const pl_op_disentangled_attention *f, const item_sizes *s, int64_t head,
                              int last, item_room *room)
{
    const int64_t n = round_up(s->tokens, TOKENS), row_bytes = n * (int64_t)sizeof(float);
    memset(room->v_rows, 0, (size_t)(s->v_dim * row_bytes));
    for (int64_t t = 0; t < s->tokens; t++) {
        const float *v = pl_row(plan, f->v, last - t) + head * s->v_dim;
        for (int64_t d = 0; d < s->v_dim; d++)
            room->v_rows[d * n + t] = v[d];
    }
    for (int64_t d = 0; d < s->v_dim; d += PL_ROWS)
        pl_pack_panel(s->type, (const uint8_t *)(room->v_rows + d * n), row_bytes,
                      (int)(s->v_dim - d < PL_ROWS ? s->v_dim - d : PL_ROWS), n,
                      room->v + d / PL_ROWS * pl_panel_bytes(s->type, n));
}

/* Keys as a matrix of a row for each token, and values. */
static void fill_panels(const pl_plan *plan, const pl_op_disentangled_attention *f, const item_sizes *s, int64_t head, int token0,
                        item_room *room)
{
    const int64_t k_stride = plan->buffers[f->k].stride;
    const int last = token0 + (int)s->tokens - 1;
    for (int64_t t = 0; t < s->tokens; t += PL_ROWS)
        pl_pack_panel(s->type, (const uint8_t *)(pl_row(plan, f->k, last - t) + head * s->k_dim),
                      -k_stride * (int64_t)sizeof(float), (int)(s->tokens - t < PL_ROWS ? s->tokens - t : PL_ROWS), s->k_dim,
                      room->k + t / PL_ROWS * pl_panel_bytes(s->type, s->k_dim));
    if (s->type & PL_INT16)
        fill_int16_values(plan, f, s, head, last, room);
    else
        fill_values(plan, f, s, head, last, room);
}

static void fill_buckets(const pl_op_disentangled_attention *f, int64_t tokens, item_room *room)
{
    const float *at_zero = f->buckets.values + f->buckets.n / 2;
    const int64_t n = 2 * tokens - 1;
    memset(room->buckets, 0, sizeof room->buckets[0] * (size_t)buckets_of(tokens));
    memset(room->runs, 0, (size_t)buckets_of(tokens));
    for (int64_t i = 0; i < n; i++)
        room->buckets[i] = (int32_t)at_zero[i + 1 - tokens];
    for (int64_t i = n - 1, run = 1; i >= 0; i--) { /* run: buckets from there on that follow each other */
        const int32_t *bucket = room->buckets + i;
        int near = i + NEAR <= n;
        for (int k = 1; k < NEAR && near; k++)
            near = bucket[k] >= bucket[0] && bucket[k] < bucket[0] + NEAR;
        run = i + 1 < n && bucket[1] == bucket[0] + 1 ? run + 1 : 1;
        room->runs[i] = run >= RUN ? PL_RUN : near ? PL_NEAR : 0;
    }
}

/* The outputs of queries [i0, i0 + n) of the sequence whose first token is token0. */
static void attend(const pl_plan *plan, const pl_op_disentangled_attention *f, const item_sizes *s, const item_room *room,
                   int64_t head, int token0, int64_t i0, int64_t n)
{
    const float *q = pl_row(plan, f->q, token0 + i0) + head * s->k_dim;
    const int64_t q_stride = plan->buffers[f->q].stride, panels = (s->tokens + PL_ROWS - 1) / PL_ROWS,
                  n_values = s->type & PL_INT16 ? round_up(s->tokens, TOKENS) : s->tokens;
    float inverse[QUERIES];
    multiply(plan, s->type, room->k, 0, panels, s->k_dim, q, q_stride, n, room->scores, room->scores_stride);
    multiply_positions(plan, f->positions.items[head], q, q_stride, n, s, room->buckets + i0, s->tokens + n - 1, room->by_query);
    plan->kernels->position_softmax(&(pl_position_softmax){.n_queries = n,
                                                           .n_keys = s->tokens,
                                                           .n_padded = round_up(n_values, PL_ROWS),
                                                           .scores = room->scores,
                                                           .scores_stride = room->scores_stride,
                                                           .by_query = room->by_query,
                                                           .by_query_stride = s->positions_stride,
                                                           .by_key = room->by_key + (s->tokens - 1) * s->positions_stride,
                                                           .by_key_stride = -s->positions_stride,
                                                           .buckets = room->buckets + i0,
                                                           .runs = room->runs + i0,
                                                           .scale = f->scale * LOG2_E,
                                                           .inverse = inverse});
    multiply(plan, s->type, room->v, 0, s->v_padded / PL_ROWS, n_values, room->scores, room->scores_stride, n, room->sums,
             s->v_padded);
    for (int64_t r = 0; r < n; r++) {
        float *out = pl_row(plan, f->out, token0 + i0 + r) + head * s->v_dim;
        for (int64_t d = 0; d < s->v_dim; d++)
            out[d] = room->sums[r * s->v_padded + d] * inverse[r];
    }
}

/* The products of all keys with the positions that queries [i0, i0 + n_queries) have, block by block. */
static void multiply_keys(const pl_plan *plan, const pl_op_disentangled_attention *f, const item_sizes *s, const item_room *room,
                          int64_t head, int token0, int64_t i0, int64_t n_queries)
{
    const pl_matrix *positions = f->positions.items[f->n_heads + head];
    const int64_t stride = plan->buffers[f->k].stride;
    for (int64_t j = 0; j < s->tokens; j += QUERIES) { /* the nearest: of the first query, to the last key of the block */
        const int64_t n = s->tokens - j < QUERIES ? s->tokens - j : QUERIES;
        multiply_positions(plan, positions, pl_row(plan, f->k, token0 + j) + head * s->k_dim, stride, n, s,
                           room->buckets + i0 + s->tokens - j - n, n_queries + n - 1, room->by_key + j * s->positions_stride);
    }
}

/* All queries, block by block; or those that the batch wants outputs of. */
static void attend_all(const pl_plan *plan, const pl_op_disentangled_attention *f, const item_sizes *s, const item_room *room,
                       int64_t head, int token0)
{
    if (!f->wanted) {
        multiply_keys(plan, f, s, room, head, token0, 0, s->tokens);
        for (int64_t i = 0; i < s->tokens; i += QUERIES)
            attend(plan, f, s, room, head, token0, i, s->tokens - i < QUERIES ? s->tokens - i : QUERIES);
        return;
    }
    for (int o = 0; o < plan->batch.n_outputs; o++) {
        const int64_t i = plan->batch.outputs[o] - token0;
        if (i >= 0 && i < s->tokens) {
            multiply_keys(plan, f, s, room, head, token0, i, 1);
            attend(plan, f, s, room, head, token0, i, 1);
        }
    }
}

int64_t run_disentangled_attention(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_disentangled_attention *f = &op->disentangled_attention;
    int64_t begin, end, n_items = (int64_t)plan->batch.n_sequences * f->n_heads;
    while (PL_TAKE(n_items, 1, 1)) {
        int token0, token1;
        const int64_t head = begin % f->n_heads;
        pl_tokens_of(&plan->batch, begin / f->n_heads, &token0, &token1);
        const item_sizes s = sizes_of(f, plan->buffers, token1 - token0);
        item_room room = room_at(pl_scratch(plan, queue->thread), &s);
        fill_buckets(f, s.tokens, &room);
        fill_panels(plan, f, &s, head, token0, &room);
        attend_all(plan, f, &s, &room, head, token0);
        PL_DONE();
    }
    return n_items;
}
