/* An op as a record: from each row of ops.def, its number, the struct of its fields and its functions. */
#ifndef PL_OP_H
#define PL_OP_H
#include "api.h"
#include "platform/work_queue.h"

struct pl_plan;

/* What a field is in C, by its type in ops.def; buffers are numbers. */
typedef int32_t pl_field_INT, pl_field_IN, pl_field_OUT, pl_field_INOUT, pl_field_RESULT, pl_field_ROWS, pl_field_Q8_IN,
    pl_field_Q8_OUT, pl_field_Q8_INOUT, pl_field_INTS_IN, pl_field_INTS_OUT, pl_field_INTS;
typedef float pl_field_FLOAT;
typedef const pl_matrix *pl_field_MATRIX;
typedef pl_matrices pl_field_MATRICES;
typedef pl_vector pl_field_VECTOR;
typedef pl_table pl_field_TABLE;
typedef pl_sums pl_field_SUMS;

/* pl_op_<name>, with the fields of the row. */
#define F(type, name) pl_field_##type name;
#define OPTIONAL(type, name) pl_field_##type name;
#define F_N(type, name, n) pl_field_##type name[n];
#define OP(name, rows, cost, amount, fields) \
    typedef struct { \
        fields \
    } pl_op_##name;
#include "exec/ops.def"
#undef OP
#undef F_N
#undef OPTIONAL
#undef F

/* PL_OP_<name> */
#define OP(name, rows, cost, amount, fields) PL_OP_##name,
enum {
#include "exec/ops.def"
    PL_OP_COUNT
};
#undef OP

#define OP(name, rows, cost, amount, fields) pl_op_##name name;
struct pl_op {
    pl_op_head head;
    union {
#include "exec/ops.def"
    };
};
#undef OP

/* check_<name>: why the op cannot be run by the plan, beyond what its fields' types say (op_check.c); NULL when it can.
 * run_<name>: what a thread does for the op -> the op's number of work items. Every thread of the pool enters it; nothing that
 * `plan->batch` points to may be read before an item was taken, since a thread may be late by a whole run. */
#define OP(name, rows, cost, amount, fields) \
    const char *check_##name(const struct pl_plan *plan, const pl_op *op); \
    int64_t run_##name(struct pl_plan *plan, const pl_op *op, pl_work_queue *queue);
#include "exec/ops.def"
#undef OP

/* A row of ops.def as data (op_table.c). */
typedef struct {
    const char *name;
    int rows; /* PL_ROWS_TOKENS, PL_ROWS_OUTPUTS, or PL_ROWS_ANY */
    float amount;
    const pl_op_field *(*fields)(int *n);
    const char *(*check)(const struct pl_plan *, const pl_op *);
    int64_t (*run)(struct pl_plan *, const pl_op *, pl_work_queue *);
    void (*cost)(const struct pl_plan *, const pl_op *, const pl_workload *, pl_cost *);
} pl_op_kind;

extern const pl_op_kind pl_op_kinds[PL_OP_COUNT];

/* op_check.c: 0 with the reason in `error`, when an op cannot be run. */
int pl_op_ok(const struct pl_plan *plan, const pl_op *op, pl_plan_error *error);

#endif
