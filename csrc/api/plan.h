#ifndef PL_API_PLAN_H
#define PL_API_PLAN_H
#include "api/kv.h"
#include "api/weights.h"

/* ---- The plan: ops over numbered buffers (exec/) ---- */

typedef struct {
    const float *values; /* (n,), padded with zeros to a multiple of 16; n 0: none */
    int64_t n;
} pl_vector;

typedef struct {
    const uint8_t *data; /* (rows, row_bytes) of a tensor type, as in the file */
    int64_t rows, row_bytes;
    int32_t type;
} pl_table;

typedef struct {
    const pl_matrix *const *items; /* (n,) */
    int64_t n;
} pl_matrices;

typedef struct {
    double *values; /* (n,) */
    int64_t n;
} pl_sums;

/* Types of an op's fields (exec/ops.def says what they mean). */
#define PL_FIELD_INT 0      /* int32_t */
#define PL_FIELD_FLOAT 1    /* float */
#define PL_FIELD_MATRIX 2   /* const pl_matrix * */
#define PL_FIELD_MATRICES 3 /* pl_matrices */
#define PL_FIELD_VECTOR 4   /* pl_vector */
#define PL_FIELD_TABLE 5    /* pl_table */
#define PL_FIELD_SUMS 6     /* pl_sums */
#define PL_FIELD_IN 7       /* int32_t, the number of a buffer, from here on */
#define PL_FIELD_OUT 8
#define PL_FIELD_INOUT 9
#define PL_FIELD_RESULT 10
#define PL_FIELD_ROWS 11
#define PL_FIELD_Q8_IN 12
#define PL_FIELD_Q8_OUT 13
#define PL_FIELD_Q8_INOUT 14
#define PL_FIELD_INTS_IN 15
#define PL_FIELD_INTS_OUT 16
#define PL_FIELD_INTS 17

#define PL_NONE -1   /* an optional field without a buffer */
#define PL_LOGITS -2 /* as a RESULT: the batch's logits; the op is skipped when the batch has no room for them */
#define PL_HIDDEN -3 /* likewise */

/* Which rows of the batch an op works on. */
#define PL_ROWS_TOKENS 0
#define PL_ROWS_OUTPUTS 1
#define PL_ROWS_LOGITS 2 /* the first n_logits outputs */
#define PL_ROWS_ANY 3    /* (in ops.def) any of them */

/* An op is a record of pl_op_bytes bytes: this head, then its fields. */
typedef struct {
    int32_t kind;  /* the row of ops.def */
    int32_t rows;  /* PL_ROWS_TOKENS … PL_ROWS_LOGITS */
    int32_t times; /* of those, for each row of the batch (experts: as many as a token has) */
} pl_op_head;

typedef struct {
    const char *name;
    int32_t type, n, optional; /* PL_FIELD_…; elements, each of the type; whether it may be left out */
    int64_t offset;            /* bytes from the op's beginning */
} pl_op_field;

typedef struct pl_op pl_op;
int64_t pl_op_bytes(void);
/* Of the kinds 0, 1, …: the name (NULL past the last), the rows it takes (PL_ROWS_…), and its n fields. */
const char *pl_op_name(int kind);
int pl_op_rows_allowed(int kind);
const pl_op_field *pl_op_fields(int kind, int *n);

/* Buffers have a row for each token of the batch, `times` over: of float32, of 8-bit blocks, or of int32. */
#define PL_BUFFER_FLOATS 0
#define PL_BUFFER_Q8 1 /* width: a multiple of 32 */
#define PL_BUFFER_INTS 2
typedef struct {
    int32_t kind, width, times; /* PL_BUFFER_…; elements of a row */
} pl_buffer;

/* Why a plan cannot be made: `op` is the number of the op that is wrong, or -1. */
typedef struct {
    int32_t op;
    char message[200];
} pl_plan_error;

typedef struct pl_plan pl_plan;
/* spaces: (n_spaces) caches, the shapes of the KV spaces' pages; n_spaces may be 0. Copies ops and shapes; the weights and
 * sums that ops point to must outlive the plan. NULL, with the reason in `error`: an op that does not fit, or out of memory. */
pl_plan *pl_plan_new(pl_pool *pool, const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops,
                     const pl_buffer *buffers, int n_buffers, int max_tokens, int n_ctx, pl_plan_error *error);
void pl_plan_free(pl_plan *plan);
/* exact: activations are rounded to 16 bits, in two blocks of 8, where only blocks that one value dominates have two. */
void pl_plan_set_exact(pl_plan *plan, int exact);
/* Bytes of all buffers and scratch; pl_plan_measure tells them without making the plan (its ops need no weights), or PL_EINVAL
 * with the reason in `error`. */
int64_t pl_plan_bytes(const pl_plan *plan);
int64_t pl_plan_measure(const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops, const pl_buffer *buffers,
                        int n_buffers, int max_tokens, int n_ctx, int n_threads, pl_plan_error *error);
/* Floats from one row of the batch's outputs to the next, a multiple of 16; 0: the plan has none of them. */
int64_t pl_plan_logits_stride(const pl_plan *plan);
int64_t pl_plan_hidden_stride(const pl_plan *plan);

/* Tokens of one sequence stand together, at consecutive positions below n_ctx; each of the n_sequences has some.
 * Wherever an array is needed, it must not be NULL. */
typedef struct {
    int32_t n_tokens, n_outputs, n_logits, n_sequences, n_embeddings, n_adapters;
    const int32_t *tokens;                /* (n_tokens,) ids; -1 - i: row i of `embeddings` stands in its place */
    const int32_t *positions;             /* (n_tokens,) */
    const int32_t *sequences;             /* (n_tokens,) */
    const int32_t *outputs;               /* (n_outputs,) rows of tokens; logits are wanted of the first n_logits of them */
    const float *adapter_scales;          /* (n_sequences, n_adapters), 0: not used; NULL: no sequence uses any */
    const float *embeddings;              /* (n_embeddings, embedding_stride) */
    int64_t embedding_stride;             /* floats, at least the model's dim */
    const uintptr_t *const *const *pages; /* pages[space][sequence][position / PL_PAGE_POSITIONS] */
    const int32_t *const *lengths; /* lengths[space][sequence]: keys for attention that is not causal; lengths, or that of a
                                    * space, may be NULL: as many as the sequence has positions, with those of this batch */
    float *logits;                 /* (n_logits, logits_stride of the plan), 64-byte aligned; or NULL */
    float *hidden;                 /* (n_outputs, hidden_stride of the plan), 64-byte aligned; or NULL */
    int32_t first_op, end_op;      /* the ops to run; end_op 0: to the last one. A long run may be cut: what ops before
                                    * first_op made of the same batch must still be there */
} pl_batch;

/* Runs the plan, or the batch's part of it, on the pool. `interrupt` (may be NULL) is called by this thread now and then, at
 * least 50 ms apart; when it returns non-zero the run ends with PL_EINTERRUPTED. PL_EINVAL: the batch does not fit the plan, or
 * an op was given a row that is not there (its results are worth nothing). PL_EREAD: an expert could not be read from its file. */
int pl_plan_run(pl_plan *plan, const pl_batch *batch, int (*interrupt)(void));
/* From now on adds up the seconds spent in each op (n_ops) of later runs into `seconds`; NULL ends it. */
void pl_plan_profile(pl_plan *plan, double *seconds);

/* A step to count: n_sequences sequences of `depth` tokens get n_tokens more each. */
typedef struct {
    int32_t n_sequences, n_tokens, depth, n_outputs, n_logits;
} pl_workload;

/* read: bytes from memory that no cache can save (weights, keys and values, table rows). int8, fp32: operations, a
 * multiplication and its addition being two; a division or exponential counts as one. Attention in whole
 * numbers counts as int8, with codes of 16 bits. */
typedef struct {
    double read, int8, fp32;
    double codes[6]; /* int8 again, by the width of codes: 4 to 8 bits (pl_code_bits), then 16 */
} pl_cost;

/* What op number `op` costs at least. */
int pl_plan_cost(const pl_plan *plan, int op, const pl_workload *work, pl_cost *cost);

#endif
