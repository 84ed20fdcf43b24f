/* Rows taken apart and put together, and whole rows scaled or left out. An item is a row. */
#include "exec/plan.h"
#include <string.h>

#define INPUTS 8

typedef void make_row(const pl_plan *plan, const pl_op *op, int64_t i, float *out);

static int64_t run_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue, int out, make_row *make)
{
    const pl_plan_buffer *b = &plan->buffers[out];
    int64_t begin, end, n = pl_op_rows(plan, op);
    while (PL_TAKE(n, 1, n > 64 ? 8 : 1)) {
        for (int64_t i = begin; i < end; i++) {
            float *y = pl_row(plan, out, i);
            make(plan, op, i, y);
            memset(y + b->width, 0, sizeof(float) * (size_t)(b->padded - b->width));
        }
        PL_DONE();
    }
    return n;
}

static int64_t width_of(const pl_plan *plan, int buffer) { return plan->buffers[buffer].width; }

/* ---- columns ---- */

const char *check_columns(const pl_plan *plan, const pl_op *op)
{
    const pl_op_columns *f = &op->columns;
    if (f->first < 0 || f->first + width_of(plan, f->out) > width_of(plan, f->x))
        return "x has no such columns";
    return f->x == f->out ? "out is x, whose columns are still needed" : NULL;
}

static void columns(const pl_plan *plan, const pl_op *op, int64_t i, float *y)
{
    const pl_op_columns *f = &op->columns;
    memcpy(y, pl_row(plan, f->x, i) + f->first, sizeof(float) * (size_t)width_of(plan, f->out));
}

int64_t run_columns(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_rows(plan, op, queue, op->columns.out, columns);
}

/* Inputs come without gaps. */
static int n_inputs(const int32_t *x)
{
    int n = 0;
    while (n < INPUTS && x[n] >= 0)
        n++;
    return n;
}

static const char *check_inputs(const pl_plan *plan, const int32_t *x, int out, int alike)
{
    int n = n_inputs(x);
    int64_t total = 0;
    for (int i = 0; i < INPUTS; i++) {
        if (i >= n && x[i] != PL_NONE)
            return "an input is missing";
        if (i < n && x[i] == out)
            return "out is an input, whose columns are still needed";
        if (i < n && alike && width_of(plan, x[i]) != width_of(plan, x[0]))
            return "inputs have different widths";
        total += i < n ? width_of(plan, x[i]) : 0;
    }
    return n > 0 && total == width_of(plan, out) ? NULL : "out is not as wide as all inputs";
}

const char *check_concatenate(const pl_plan *plan, const pl_op *op)
{
    return check_inputs(plan, op->concatenate.x, op->concatenate.out, 0);
}

static void concatenate(const pl_plan *plan, const pl_op *op, int64_t i, float *y)
{
    const int32_t *x = op->concatenate.x;
    for (int k = 0, n = n_inputs(x); k < n; y += width_of(plan, x[k++]))
        memcpy(y, pl_row(plan, x[k], i), sizeof(float) * (size_t)width_of(plan, x[k]));
}

int64_t run_concatenate(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_rows(plan, op, queue, op->concatenate.out, concatenate);
}

const char *check_interleave(const pl_plan *plan, const pl_op *op)
{
    return check_inputs(plan, op->interleave.x, op->interleave.out, 1);
}

static void interleave(const pl_plan *plan, const pl_op *op, int64_t i, float *y)
{
    const int32_t *x = op->interleave.x;
    const int n = n_inputs(x);
    for (int k = 0; k < n; k++) {
        const float *row = pl_row(plan, x[k], i);
        for (int64_t c = 0; c < width_of(plan, x[0]); c++)
            y[c * n + k] = row[c];
    }
}

int64_t run_interleave(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_rows(plan, op, queue, op->interleave.out, interleave);
}

/* ---- rows ---- */

const char *check_scale_rows(const pl_plan *plan, const pl_op *op)
{
    const pl_op_scale_rows *f = &op->scale_rows;
    if (width_of(plan, f->factors) != 1 || f->factors == f->out)
        return "factors are not one for each row, or out";
    return width_of(plan, f->x) == width_of(plan, f->out) ? NULL : "x and out have different widths";
}

static void scale_row(const pl_plan *plan, const pl_op *op, int64_t i, float *y)
{
    const pl_op_scale_rows *f = &op->scale_rows;
    const float *x = pl_row(plan, f->x, i);
    const float factor = *pl_row(plan, f->factors, i);
    for (int64_t c = 0; c < width_of(plan, f->out); c++)
        y[c] = x[c] * factor;
}

int64_t run_scale_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_rows(plan, op, queue, op->scale_rows.out, scale_row);
}

const char *check_mask_rows(const pl_plan *plan, const pl_op *op)
{
    const pl_op_mask_rows *f = &op->mask_rows;
    if (f->space < 0 || f->space >= plan->n_spaces)
        return "there is no such KV space";
    return width_of(plan, f->x) == width_of(plan, f->out) ? NULL : "x and out have different widths";
}

static void mask_row(const pl_plan *plan, const pl_op *op, int64_t i, float *y)
{
    const pl_op_mask_rows *f = &op->mask_rows;
    const pl_batch *b = &plan->batch;
    const size_t bytes = sizeof(float) * (size_t)width_of(plan, f->out);
    if (b->lengths && b->lengths[f->space] && b->lengths[f->space][b->sequences[i]] == 0)
        memset(y, 0, bytes);
    else if (f->x != f->out)
        memcpy(y, pl_row(plan, f->x, i), bytes);
}

int64_t run_mask_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_rows(plan, op, queue, op->mask_rows.out, mask_row);
}
