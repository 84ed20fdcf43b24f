/* What a run of the plan works on: shared by plan.c (the executor) and plan_attention.c (attention over pages). */
#ifndef PL_PLAN_H
#define PL_PLAN_H
#include "api.h"
#include "exec/pages.h"
#include "kernels/kernels.h"
#include "platform/work_queue.h"

/* Neighbouring tokens of one sequence whose queries are attended together. */
typedef struct {
    int sequence, token0, n_tokens;
    int n_splits;      /* > 1: the keys of this (single) token are cut into fixed splits that run side by side */
    int64_t item0;     /* its first work item: item0 + head * n_splits + split */
    int64_t part0;     /* its first partial state */
} pl_group;

typedef struct {
    pl_group *groups; /* (max_tokens) */
    int n_groups;
    int64_t n_items;
    int apart; /* items of a group are for any thread: there are few groups, or some have splits */
    int heads_per_kv, tokens_max, rows_max; /* of an item at most: heads * tokens = query rows */
    int64_t state_floats;     /* of one row */
    float *parts;             /* (part_capacity, state_floats): partial states of split items */
    int64_t part_capacity;
    _Atomic int32_t *pending; /* per (group, head): splits still running */
    uint8_t *scratch;         /* per thread */
    int64_t scratch_bytes;    /* of one thread */
} pl_attention_work;

struct pl_plan {
    pl_pool *pool;
    const pl_cache *cache;
    const pl_kernels *kernels;
    pl_op *ops;
    struct pl_matrix *matrices; /* (n_ops, 3): copies of what the ops point to, for late threads to look at */
    int n_ops, n_buffers, n_q8, max_tokens;
    int64_t *widths, *strides; /* of each buffer: floats of a row, and from one row to the next */
    float **buffers;
    pl_q8 **q8;
    uint8_t **residual_blocks; /* of each of them, gathered (residual_blocks.h) */
    int64_t *q8_blocks, *q8_strides; /* blocks of a row; blocks from one row to the next, with room for residual blocks */
    uint8_t *arena;
    int64_t arena_bytes, bytes;
    pl_items_done *done;    /* one per op */
    pl_section *sections; /* one per thread */
    pl_attention_work attention;
    /* of the run under way; a thread that is late by a run may read these, but gets no work from the sections */
    pl_batch batch;
    _Atomic uint64_t round;
    pl_job job;
    int (*interrupt)(void);
    _Atomic int stop;
    double *profile;
};

static inline int64_t pl_op_rows(const pl_plan *plan, const pl_op *op)
{
    return op->outputs ? plan->batch.n_outputs : plan->batch.n_tokens;
}

/* plan_ops.c: what a thread does for an op -> the op's number of work items */
int64_t pl_op_run(pl_plan *plan, const pl_op *op, pl_share *share);
/* plan_attention.c
 * Fills in the sizes -> bytes of partial states and scratch. */
int64_t pl_attention_measure(pl_attention_work *work, const pl_cache *cache, const pl_op *ops, int n_ops, int n_ctx, int n_threads);
int pl_attention_init(pl_plan *plan);
void pl_attention_free(pl_plan *plan);
void pl_attention_prepare(pl_plan *plan); /* cuts the batch into groups */
/* -> its number of work items, as every op has it */
int64_t pl_attention_run(pl_plan *plan, const pl_op *op, pl_share *share);
/* plan_squares.c */
int64_t pl_squares_run(pl_plan *plan, const pl_op *op, pl_share *share);

#endif
