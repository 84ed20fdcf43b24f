/* A plan that is made, and the run that is under way. */
#ifndef PL_PLAN_H
#define PL_PLAN_H
#include "api.h"
#include "exec/attention.h"
#include "exec/expert_memory.h"
#include "exec/op.h"
#include "exec/pages.h"
#include "kernels/kernels.h"
#include "platform/placement.h"

/* A buffer of the plan: (max_tokens * times) rows. */
typedef struct {
    int kind;
    int64_t width;  /* elements of a row */
    int64_t padded; /* floats and ints of a row, with the padding that kernels may touch; blocks of a row of Q8 */
    int64_t stride; /* from one row to the next: floats, ints or blocks, with room for residual ones */
    int64_t rows;   /* for each token */
    union {
        float *floats;
        int32_t *ints;
        pl_q8 *q8;
        uint8_t *data;
    };
    uint8_t *residual; /* of Q8: its residual blocks, gathered (residual_blocks.h) */
} pl_plan_buffer;

/* What ops do with a KV space: which pages a batch must have. */
typedef struct {
    int stored, causal, whole; /* written; read up to each token; all its keys are read */
    int all, window, chunk;    /* causal ops read from the beginning; or at most so far back; or from a multiple of it on */
} pl_space_use;

struct pl_plan {
    pl_pool *pool;
    const pl_kernels *kernels;
    const pl_cache *const *spaces; /* shapes of pages: of copies, since late threads look at them too */
    const pl_cache **space_list;
    struct pl_cache *space_copies;
    pl_plan_buffer *buffers;
    pl_op *ops;
    struct pl_matrix *matrices;            /* copies of what the ops point to, for late threads to look at */
    const struct pl_matrix **matrix_lists; /* of the ops that have as many as there are */
    int n_spaces, n_buffers, n_ops, max_tokens, n_ctx, n_adapters; /* the last: that ops look up scales of */
    int64_t n_matrices, logits_stride, hidden_stride;
    float dominant;   /* share of a block's squares above which its largest value asks for a residual block */
    int64_t n_embeddable, embedding_width; /* ids below the first have a row in every table; the widest of these */
    pl_space_use *uses;                    /* of each space */
    pl_expert_memory *experts;             /* that some matrices are read into; NULL: all lie in memory */
    uint64_t *seen, n_checked;             /* (max_tokens): the last batch that had the sequence */
    uint8_t *arena, *scratch;              /* buffers; what ops need for each thread */
    int64_t arena_bytes, scratch_bytes, bytes;
    pl_attention_work attention;
    pl_items_done *done; /* done_lines per op */
    pl_cursor *cursors;  /* one per thread of the pool */
    int done_lines;
    pl_division divisions[PL_STEP_KINDS];
    /* of the run under way; a thread that is late by a run may read these, but gets no work */
    pl_batch batch;
    const pl_division *division; /* over the threads that take part */
    _Atomic uint64_t round;
    pl_job job;
    int (*interrupt)(void);
    _Atomic int stop, failed; /* failed: PL_OK, or the error that the run ends with */
    double *profile;
};

static inline int64_t pl_op_rows(const pl_plan *plan, const pl_op *op)
{
    int rows = op->head.rows;
    int64_t n = rows == PL_ROWS_TOKENS    ? plan->batch.n_tokens
                : rows == PL_ROWS_OUTPUTS ? plan->batch.n_outputs
                                          : plan->batch.n_logits;
    return n * op->head.times;
}

static inline float *pl_row(const pl_plan *plan, int buffer, int64_t i)
{
    return plan->buffers[buffer].floats + i * plan->buffers[buffer].stride;
}

static inline int32_t *pl_int_row(const pl_plan *plan, int buffer, int64_t i)
{
    return plan->buffers[buffer].ints + i * plan->buffers[buffer].stride;
}

/* The rows of a RESULT, which may be the batch's own arrays; NULL when the batch does not want them. */
static inline float *pl_result_rows(const pl_plan *plan, int buffer, int64_t *stride)
{
    *stride = buffer == PL_LOGITS   ? plan->logits_stride
              : buffer == PL_HIDDEN ? plan->hidden_stride
                                    : plan->buffers[buffer].stride;
    return buffer == PL_LOGITS ? plan->batch.logits : buffer == PL_HIDDEN ? plan->batch.hidden : plan->buffers[buffer].floats;
}

/* Blocks [block0, block1) of row i of a Q8 buffer, from the row's floats x. */
static inline void pl_quantize_blocks(const pl_plan *plan, int q8, const float *x, int64_t block0, int64_t block1, int64_t i)
{
    const pl_plan_buffer *b = &plan->buffers[q8];
    plan->kernels->quantize(x + 32 * block0, block1 - block0, (int32_t)b->padded, plan->dominant, b->q8 + i * b->stride + block0);
}

/* The run's results are worth nothing: it ends with the error `code` (PL_E…). */
static inline void pl_plan_fail(pl_plan *plan, int code) { atomic_store(&plan->failed, code); }

/* This thread's part of the scratch. */
static inline uint8_t *pl_scratch(const pl_plan *plan, int thread) { return plan->scratch + thread * plan->scratch_bytes; }

/* run.c: what each thread of the pool does in a run */
void pl_plan_run_thread(void *plan, int thread);
/* Bytes of a thread's scratch that an op needs, of the kinds that do (op_table.c); else NULL. */
typedef int64_t pl_op_scratch(const pl_op *op, const pl_plan_buffer *buffers, int n_buffers, int max_tokens);
extern pl_op_scratch *const pl_op_scratches[PL_OP_COUNT];
pl_op_scratch pl_segment_scratch, pl_self_attention_scratch, pl_disentangled_scratch, pl_tile_attention_scratch;

#define PL_TAKE(n, unit, grain) pl_queue_take(queue, n, unit, grain, &begin, &end)
#define PL_DONE() pl_queue_done(queue, end - begin)

#endif
