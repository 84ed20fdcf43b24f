/* Whether an op fits the plan: what the types of its fields say, before its own check_<name>. After both, no run reads or
 * writes outside a buffer, whatever the op's numbers. */
#include "exec/plan.h"
#include "types/blocks.h"
#include "types/matrix.h"
#include <math.h>
#include <stdarg.h>
#include <stdio.h>

static int fail(pl_plan_error *error, const char *format, ...) __attribute__((format(printf, 2, 3)));

static int fail(pl_plan_error *error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
    return 0;
}

static int buffer_kind(int type)
{
    switch (type) {
    case PL_FIELD_Q8_IN:
    case PL_FIELD_Q8_OUT:
    case PL_FIELD_Q8_INOUT: return PL_BUFFER_Q8;
    case PL_FIELD_INTS_IN:
    case PL_FIELD_INTS_OUT:
    case PL_FIELD_INTS: return PL_BUFFER_INTS;
    default: return PL_BUFFER_FLOATS;
    }
}

static int buffer_ok(const pl_plan *plan, const pl_op *op, const pl_op_field *f, int32_t number, pl_plan_error *error)
{
    static const char *const kinds[] = {"float32", "8-bit blocks", "int32"};
    if (number == PL_NONE && f->optional)
        return 1;
    if (f->type == PL_FIELD_RESULT && number == PL_LOGITS)
        return (op->head.rows == PL_ROWS_LOGITS && op->head.times == 1) ||
               fail(error, "%s: the batch's logits have rows of logits", f->name);
    if (f->type == PL_FIELD_RESULT && number == PL_HIDDEN)
        return (op->head.rows == PL_ROWS_OUTPUTS && op->head.times == 1) ||
               fail(error, "%s: the batch's hidden states have rows of outputs", f->name);
    if (number < 0 || number >= plan->n_buffers)
        return fail(error, "%s: there is no buffer %d", f->name, (int)number);
    const pl_plan_buffer *b = &plan->buffers[number];
    if (b->kind != buffer_kind(f->type))
        return fail(error, "%s: buffer %d is of %s, not of %s", f->name, (int)number, kinds[b->kind],
                    kinds[buffer_kind(f->type)]);
    if (b->rows < op->head.times && f->type != PL_FIELD_ROWS && f->type != PL_FIELD_INTS)
        return fail(error, "%s: buffer %d has %d rows for each token, not %d", f->name, (int)number, (int)b->rows,
                    (int)op->head.times);
    return 1;
}

static int matrix_ok(const pl_matrix *m, const pl_op_field *f, int may_be_stored, pl_plan_error *error)
{
    if (!m)
        return f->optional || fail(error, "%s: a matrix is missing", f->name);
    if (m->stored && !may_be_stored)
        return fail(error, "%s: a matrix that is in a file, which only products of segments can read", f->name);
    return ((m->data || m->stored) && m->panels > 0 && m->cols > 0) || fail(error, "%s: a matrix without weights", f->name);
}

static int matrices_ok(const pl_op *op, const pl_matrices *list, const pl_op_field *f, pl_plan_error *error)
{
    const int may_be_stored = op->head.kind == PL_OP_request_experts ||
                              op->head.kind == PL_OP_expect_experts || op->head.kind == PL_OP_segment_matmul;
    if (list->n == 0 && f->optional)
        return 1;
    if (list->n < 1 || list->n > 1 << 20 || !list->items)
        return fail(error, "%s: matrices are missing", f->name);
    for (int64_t i = 0; i < list->n; i++)
        if (!matrix_ok(list->items[i], f, may_be_stored, error))
            return 0;
    return 1;
}

static int vector_ok(const pl_vector *v, const pl_op_field *f, pl_plan_error *error)
{
    if (v->n == 0 && f->optional)
        return 1;
    return (v->n > 0 && v->values && (uintptr_t)v->values % sizeof(float) == 0) ||
           fail(error, "%s: a vector is missing", f->name);
}

static int table_ok(const pl_table *t, const pl_op_field *f, pl_plan_error *error)
{
    const pl_type_info *info = pl_type_find(t->type);
    if (!t->data || t->rows < 1 || t->row_bytes < 1)
        return fail(error, "%s: a table is missing", f->name);
    return (info && t->row_bytes % info->block_bytes == 0) || fail(error, "%s: not rows of a tensor type", f->name);
}

static int field_ok(const pl_plan *plan, const pl_op *op, const pl_op_field *f, int i, pl_plan_error *error)
{
    const void *at = (const char *)op + f->offset;
    switch (f->type) {
    case PL_FIELD_INT: return 1;
    case PL_FIELD_FLOAT: return isfinite(*(const float *)at) || fail(error, "%s: not a finite number", f->name);
    case PL_FIELD_MATRIX: return matrix_ok(((const pl_matrix *const *)at)[i], f, 0, error);
    case PL_FIELD_MATRICES: return matrices_ok(op, at, f, error);
    case PL_FIELD_VECTOR: return vector_ok((const pl_vector *)at + i, f, error);
    case PL_FIELD_TABLE: return table_ok(at, f, error);
    case PL_FIELD_SUMS:
        return (((const pl_sums *)at)->values && ((const pl_sums *)at)->n > 0) || fail(error, "%s: missing", f->name);
    default: return buffer_ok(plan, op, f, ((const int32_t *)at)[i], error);
    }
}

static int head_ok(const pl_plan *plan, const pl_op_head *head, pl_plan_error *error)
{
    if (head->kind < 0 || head->kind >= PL_OP_COUNT)
        return fail(error, "there is no op of kind %d", (int)head->kind);
    int allowed = pl_op_kinds[head->kind].rows;
    if (head->rows < PL_ROWS_TOKENS || head->rows > PL_ROWS_LOGITS || (allowed != PL_ROWS_ANY && head->rows != allowed))
        return fail(error, "the op does not work on these rows of the batch");
    if (head->times < 1 || (allowed != PL_ROWS_ANY && head->times > 1) || (int64_t)head->times * plan->max_tokens > 1 << 24)
        return fail(error, "%d rows for each row of the batch", (int)head->times);
    return 1;
}

int pl_op_ok(const pl_plan *plan, const pl_op *op, pl_plan_error *error)
{
    int n;
    if (!head_ok(plan, &op->head, error))
        return 0;
    const pl_op_kind *kind = &pl_op_kinds[op->head.kind];
    const pl_op_field *fields = kind->fields(&n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < fields[i].n; j++)
            if (!field_ok(plan, op, &fields[i], j, error))
                return 0;
    const char *reason = kind->check(plan, op);
    return reason ? fail(error, "%s", reason) : 1;
}
