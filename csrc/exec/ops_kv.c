/* Rotary positions, and keys and values on their way to the pages. */
#include "exec/kv_rounding.h"
#include "exec/plan.h"
#include <string.h>

const char *check_rope(const pl_plan *plan, const pl_op *op)
{
    const pl_op_rope *f = &op->rope;
    const int64_t width = plan->buffers[f->x].width, rope = plan->buffers[f->rope].width;
    if (f->n_heads < 1 || f->n_heads > PL_MAX_HEADS || width % f->n_heads)
        return "x is not as wide as its heads";
    return f->rope != f->x && rope <= width / f->n_heads && rope % 2 == 0 ? NULL : "rope is wider than a head, odd, or x";
}

int64_t run_rope(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_rope *f = &op->rope;
    const int head_dim = (int)(plan->buffers[f->x].width / f->n_heads), rope_dim = (int)plan->buffers[f->rope].width;
    int64_t begin, end, n = pl_op_rows(plan, op);
    while (PL_TAKE(n, 1, n > 64 ? 8 : 1)) {
        for (int64_t i = begin; i < end; i++)
            plan->kernels->rope(pl_row(plan, f->x, i), pl_row(plan, f->rope, i), f->n_heads, head_dim, rope_dim);
        PL_DONE();
    }
    return n;
}

const char *check_rope_store(const pl_plan *plan, const pl_op *op)
{
    const pl_op_rope_store *f = &op->rope_store;
    const pl_plan_buffer *b = plan->buffers;
    if (f->space < 0 || f->space >= plan->n_spaces)
        return "there is no such KV space";
    const pl_cache *c = plan->spaces[f->space];
    if (f->layer < 0 || f->layer >= c->n_layers)
        return "the KV space has no such layer";
    const int64_t q_width = f->q >= 0 ? b[f->q].width : 0;
    if (f->n_heads < (f->q >= 0) || f->n_heads > PL_MAX_HEADS || q_width != (int64_t)f->n_heads * c->k.head_dim)
        return "q is not as wide as its heads";
    if (b[f->k].width != (int64_t)c->kv_heads * c->k.head_dim || b[f->v].width != (int64_t)c->kv_heads * c->v.head_dim)
        return "k or v is not as wide as the space's heads";
    if (f->q == f->k || (f->rope >= 0 && (f->rope == f->q || f->rope == f->k)))
        return "q, k and rope are not different buffers";
    return f->rope == PL_NONE || (b[f->rope].width <= c->k.head_dim && b[f->rope].width % 2 == 0)
               ? NULL
               : "rope is wider than a head, or odd";
}

/* A head as its tile keeps it: x itself, or turned, less what its cache takes off. */
static const float *turned_head(const pl_plan *plan, const pl_kv_tile *tile, const float *x, const float *shift, float *turned)
{
    if (!tile->rotation)
        return x;
    memcpy(turned, x, sizeof(float) * (size_t)tile->head_dim);
    plan->kernels->rotate(turned, tile->head_dim, tile->rotation);
    for (int d = 0; shift && d < tile->head_dim; d++)
        turned[d] -= shift[d];
    return turned;
}

static uint8_t *key_tile(const pl_plan *plan, const pl_op_rope_store *f, int64_t t, int64_t head)
{
    const pl_batch *b = &plan->batch;
    uint8_t *page = (uint8_t *)b->pages[f->space][b->sequences[t]][b->positions[t] / PL_TILE];
    return page + pl_cache_offset(plan->spaces[f->space], f->layer, (int)head);
}

/* The keys of tokens [t0, t1) of a head whose rounding is known. */
static void store_rounded(pl_plan *plan, const pl_op_rope_store *f, int64_t t0, int64_t t1, int head)
{
    const pl_cache *c = plan->spaces[f->space];
    const pl_key_rounding rounding = pl_key_rounding_of(c, f->layer, head);
    const int dim = c->k.head_dim;
    float turned[PL_STORE_KEYS][PL_SHAPED_DIM];
    pl_key_store keys[PL_STORE_KEYS];
    for (int n; t0 < t1; t0 += n) {
        n = t1 - t0 < PL_STORE_KEYS ? (int)(t1 - t0) : PL_STORE_KEYS;
        for (int i = 0; i < n; i++) {
            const float *key = pl_row(plan, f->k, t0 + i) + head * dim;
            for (int d = 0; d < dim; d++)
                turned[i][d] = key[d] * rounding.stretch[d];
            plan->kernels->rotate(turned[i], dim, c->k.rotation);
            for (int d = 0; d < dim; d++)
                turned[i][d] -= rounding.mean[d];
            keys[i] = (pl_key_store){key_tile(plan, f, t0 + i, head), plan->batch.positions[t0 + i] % PL_TILE, turned[i]};
        }
        plan->kernels->store_keys(&c->k, rounding.factors, keys, n);
    }
}

/* Keys and values of tokens [t0, t1) of a KV head. */
static void store_head(pl_plan *plan, const pl_op_rope_store *f, int64_t t0, int64_t t1, int head)
{
    const pl_cache *c = plan->spaces[f->space];
    const int is_rounded = pl_key_rounding_of(c, f->layer, head).factors != NULL;
    const float *shift = pl_value_shift_of(c, f->layer, head);
    float turned[PL_MAX_HEAD_DIM];
    if (is_rounded)
        store_rounded(plan, f, t0, t1, head);
    for (int64_t t = t0; t < t1; t++) {
        const int slot = plan->batch.positions[t] % PL_TILE;
        uint8_t *tile = key_tile(plan, f, t, head);
        const float *k = pl_row(plan, f->k, t) + head * c->k.head_dim, *v = pl_row(plan, f->v, t) + head * c->v.head_dim;
        if (!is_rounded)
            plan->kernels->store_k(&c->k, tile, slot, turned_head(plan, &c->k, k, NULL, turned));
        plan->kernels->store_v(&c->v, tile + c->k.bytes, slot, turned_head(plan, &c->v, v, shift, turned));
    }
}

/* Tokens that are stored head by head: keys of neighbouring positions share cache lines, and those that are rounded dim after dim
 * are so side by side. Tokens of a sequence each share nothing. */
static int64_t tokens_of_group(const pl_batch *b)
{
    return b->n_tokens >= 4 * PL_TILE ? PL_TILE : b->n_tokens >= 2 * b->n_sequences ? PL_STORE_KEYS : 1;
}

/* Items are the heads of group after group, queries before keys. */
int64_t run_rope_store(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_rope_store *f = &op->rope_store;
    const pl_cache *c = plan->spaces[f->space];
    const int dim = c->k.head_dim, rope_dim = f->rope >= 0 ? (int)plan->buffers[f->rope].width : 0;
    const int64_t tokens = plan->batch.n_tokens, heads = f->n_heads + c->kv_heads;
    const int64_t group = tokens_of_group(&plan->batch), groups = (tokens + group - 1) / group;
    int64_t begin, end;
    while (PL_TAKE(groups * heads, pl_unit(tokens, heads), tokens >= 4 * PL_TILE ? heads : (heads + 3) / 4)) {
        for (int64_t item = begin; item < end; item++) {
            const int64_t t0 = item / heads * group, t1 = t0 + group < tokens ? t0 + group : tokens;
            const int h = (int)(item % heads), kv_head = h - f->n_heads;
            for (int64_t t = t0; rope_dim && t < t1; t++) {
                float *x = kv_head < 0 ? pl_row(plan, f->q, t) + h * dim : pl_row(plan, f->k, t) + kv_head * dim;
                plan->kernels->rope(x, pl_row(plan, f->rope, t), 1, dim, rope_dim);
            }
            if (kv_head >= 0)
                store_head(plan, f, t0, t1, kv_head);
        }
        PL_DONE();
    }
    return groups * heads;
}
