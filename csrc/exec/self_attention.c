/* Attention among all tokens that a sequence has in the batch, without a cache: what encoders do.
 *
 * An item is a sequence and a KV head. A sequence must be in the batch whole: that is how encoders see it. */
#include "exec/batch_keys.h"

static pl_batch_keys keys_of(const pl_op *op) { return (pl_batch_keys)PL_BATCH_KEYS(&op->self_attention); }

int64_t pl_self_attention_scratch(const pl_op *op, const pl_plan_buffer *buffers, int n_buffers, int max_tokens)
{
    (void)n_buffers;
    pl_batch_keys keys = keys_of(op);
    pl_batch_keys_init(&keys, buffers);
    return pl_batch_keys_scratch(&keys, max_tokens);
}

const char *check_self_attention(const pl_plan *plan, const pl_op *op)
{
    const pl_batch_keys keys = keys_of(op);
    return pl_batch_keys_check(plan, &keys);
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

/* Queries of tokens [t0, t1) against all keys. */
static void attend(const pl_batch_keys *keys, const pl_plan *plan, int t0, int t1, int64_t head, int n_keys, pl_batch_room *room)
{
    const int rows = (t1 - t0) * keys->per_kv;
    for (int t = t0; t < t1; t++)
        pl_batch_keys_load(keys, plan, room, (t - t0) * keys->per_kv, t, head);
    for (int r = 0; r < rows; r++) {
        room->states.lo[r] = 0;
        room->states.pos[r] = n_keys - 1;
    }
    for (int key0 = 0; key0 < n_keys; key0 += PL_SPLIT)
        pl_batch_keys_attend(keys, plan, room, rows, key0, key0 + PL_SPLIT < n_keys ? key0 + PL_SPLIT : n_keys, 0);
    for (int t = t0; t < t1; t++)
        pl_batch_keys_write(keys, plan, room, (t - t0) * keys->per_kv, t, head);
}

int64_t run_self_attention(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    pl_batch_keys keys = keys_of(op);
    int64_t begin, end, n_items = (int64_t)plan->batch.n_sequences * keys.kv_heads;
    pl_batch_keys_init(&keys, plan->buffers);
    while (PL_TAKE(n_items, 1, 1)) {
        const int64_t head = begin % keys.kv_heads;
        int token0, token1;
        pl_tokens_of(&plan->batch, begin / keys.kv_heads, &token0, &token1);
        pl_batch_room room = pl_batch_keys_room(&keys, plan, queue->thread, token1 - token0);
        for (int t = token0; t < token1; t++)
            pl_batch_keys_store(&keys, plan, &room, t - token0, t, head);
        for (int t = token0; t < token1; t += keys.tokens)
            attend(&keys, plan, t, t + keys.tokens < token1 ? t + keys.tokens : token1, head, token1 - token0, &room);
        PL_DONE();
    }
    return n_items;
}
