/* How attention is shared among threads: schedules of a batch, and the room that an item needs. */
#ifndef PL_ATTENTION_H
#define PL_ATTENTION_H
#include "api.h"
#include "exec/op.h"
#include "kernels/kernels.h"
#include <stdatomic.h>

#define PL_MAX_HEADS (1 << 13)
#define PL_ROWS_WANTED 64 /* query rows of an item: enough to share the pages read, few enough for the L2 cache */

/* Neighbouring tokens of one sequence whose queries are attended together. */
typedef struct {
    int sequence, token0, n_tokens;
    int n_splits;  /* > 1: the keys of this (single) token are cut into fixed splits that run side by side */
    int64_t item0; /* its first work item: item0 + head * n_splits + split */
    int64_t part0; /* its first partial state */
    int64_t keys;  /* that each of its tokens sees; -1: those up to its own position */
} pl_group;

/* The groups of a batch for all ops that attend to one space alike. */
typedef struct {
    int space, causal;
    int heads_per_kv, tokens_max; /* of a group at most */
    pl_group *groups;             /* (max_tokens) */
    int n_groups;
    int64_t n_items;
    int apart;                /* items of a group are for any thread: there are few groups, or some have splits */
    _Atomic int32_t *pending; /* per (group, head): splits still running */
} pl_attention_schedule;

typedef struct {
    pl_attention_schedule *schedules;
    int n_schedules;
    int64_t state_floats; /* of one row, at most */
    float *parts;         /* (part_capacity, state_floats): partial states of split items */
    int64_t part_capacity;
    int64_t scratch_bytes; /* of one thread */
} pl_attention_work;

/* Shapes of an item, and its room: heads padded, query rows, their states. */
typedef struct {
    int64_t k_dim, v_dim;
    int rows;
} pl_item_shape;

typedef struct {
    float **total, **part; /* (rows): states */
    const float **q;       /* (rows): queries times the softmax scale and log2 e */
    int32_t *pos, *lo;     /* (rows): the last and the first key that a row sees */
    float *tiles;          /* for the kernel */
    int64_t state_floats;
} pl_item_scratch;

int64_t pl_item_scratch_bytes(pl_item_shape shape);
/* Places it in `memory`. */
pl_item_scratch pl_item_scratch_at(uint8_t *memory, pl_item_shape shape);
/* A softmax state without keys. */
void pl_state_clear(float *state, int64_t state_floats);

/* self_attention.c: the tokens [token0, token1) of sequence number `index` of the batch */
void pl_tokens_of(const pl_batch *b, int64_t index, int *token0, int *token1);

/* attention_schedule.c
 * Fills in sizes and schedules (without groups yet) -> bytes of partial states; PL_EINVAL: an op has no such space. */
int64_t pl_attention_measure(pl_attention_work *work, const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops,
                             int n_ctx);
int pl_attention_init(struct pl_plan *plan);
void pl_attention_free(pl_attention_work *work);
/* Cuts the batch into groups. */
void pl_attention_prepare(struct pl_plan *plan);
pl_attention_schedule *pl_schedule_of(const pl_attention_work *work, int space, int causal);
pl_item_shape pl_schedule_shape(const pl_attention_schedule *schedule, const pl_cache *space);

#endif
