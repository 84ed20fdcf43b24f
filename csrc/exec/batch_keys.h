/* Attention to keys of the batch itself, without a cache: what self_attention.c and tile_attention.c have in common.
 *
 * An item's thread lays the keys and values of one KV head out as float32 tiles in its scratch and attends groups of queries
 * to them, with the kernels and the splits of attention over pages. */
#ifndef PL_BATCH_KEYS_H
#define PL_BATCH_KEYS_H
#include "exec/attention.h"
#include "exec/plan.h"

/* The fields that such ops have, and what follows from their widths. */
typedef struct {
    int q, k, v, out; /* buffers */
    int n_heads, kv_heads;
    float scale;
    pl_kv_tile k_tile, v_tile;
    int per_kv, tokens; /* query heads of a KV head; tokens of a group of queries at most */
    pl_item_shape shape;
} pl_batch_keys;

#define PL_BATCH_KEYS(op) \
    { \
        .q = (op)->q, .k = (op)->k, .v = (op)->v, .out = (op)->out, .n_heads = (op)->n_heads, .kv_heads = (op)->kv_heads, \
        .scale = (op)->scale \
    }

/* An item's room: the states of its queries, and `n_keys` keys, 32 to a tile. */
typedef struct {
    pl_item_scratch states;
    uint8_t **tiles;
} pl_batch_room;

/* What is wrong with the widths of an op's buffers, or NULL. */
const char *pl_batch_keys_check(const pl_plan *plan, const pl_batch_keys *keys);
/* Shapes, of fields that are right. */
void pl_batch_keys_init(pl_batch_keys *keys, const pl_plan_buffer *buffers);
int64_t pl_batch_keys_scratch(const pl_batch_keys *keys, int64_t n_keys);
/* The room in a thread's scratch; no keys are in it. */
pl_batch_room pl_batch_keys_room(const pl_batch_keys *keys, const pl_plan *plan, int thread, int64_t n_keys);
/* Key number `key`, of KV head `head`, is that of a row of the batch. */
void pl_batch_keys_store(const pl_batch_keys *keys, const pl_plan *plan, const pl_batch_room *room, int64_t key, int64_t row,
                         int64_t head);
/* The queries of a row of the batch, of all heads of KV head `head`, become the room's from `first` on, with empty states. */
void pl_batch_keys_load(const pl_batch_keys *keys, const pl_plan *plan, pl_batch_room *room, int first, int64_t row,
                        int64_t head);
/* Attends the first `n` queries to keys [key0, key1), of which each sees those from its lo to its pos, and adds that to their
 * states, as if each key were there 2^log_weight times. key0 and key1 are of one split; key0 begins a tile. */
void pl_batch_keys_attend(const pl_batch_keys *keys, const pl_plan *plan, pl_batch_room *room, int n, int64_t key0, int64_t key1,
                          float log_weight);
/* The results of the queries that were loaded from that row. */
void pl_batch_keys_write(const pl_batch_keys *keys, const pl_plan *plan, const pl_batch_room *room, int first, int64_t row,
                         int64_t head);

#endif
