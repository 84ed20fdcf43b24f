/* Ops that bring rows of the batch into the plan, and out of it. */
#include "exec/plan.h"
#include "types/blocks.h"
#include <math.h>
#include <string.h>

static int64_t table_cols(const pl_table *table)
{
    const pl_type_info *info = pl_type_find(table->type);
    return table->row_bytes / info->block_bytes * info->block_elements;
}

const char *check_embed(const pl_plan *plan, const pl_op *op)
{
    const pl_op_embed *f = &op->embed;
    return table_cols(&f->table) == plan->buffers[f->out].width ? NULL : "out is not as wide as the table";
}

int64_t run_embed(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_embed *f = &op->embed;
    const pl_batch *b = &plan->batch;
    int64_t begin, end, cols = table_cols(&f->table), n = b->n_tokens;
    while (PL_TAKE(n, 1, 1)) {
        float *out = pl_row(plan, f->out, begin);
        int64_t token = b->tokens[begin];
        if (token < 0)
            memcpy(out, b->embeddings + (-1 - token) * b->embedding_stride, sizeof(float) * (size_t)cols);
        else
            pl_dequantize(f->table.type, f->table.data + token * f->table.row_bytes, out, cols);
        memset(out + cols, 0, sizeof(float) * (size_t)(plan->buffers[f->out].padded - cols));
        PL_DONE();
    }
    return n;
}

const char *check_rope_table(const pl_plan *plan, const pl_op *op)
{
    const pl_op_rope_table *f = &op->rope_table;
    return 2 * f->frequencies.n == plan->buffers[f->out].width ? NULL
                                                               : "out does not have a cosine and a sine for each frequency";
}

int64_t run_rope_table(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_rope_table *f = &op->rope_table;
    int64_t begin, end, n = plan->batch.n_tokens, half = f->frequencies.n;
    while (PL_TAKE(n, 1, 1)) {
        float *out = pl_row(plan, f->out, begin);
        for (int64_t i = 0; i < half; i++) { /* the angle in float32, as the reference implementations have it */
            float angle = (float)plan->batch.positions[begin] * f->frequencies.values[i];
            out[i] = (float)(cos((double)angle)) * f->magnitude;
            out[half + i] = (float)(sin((double)angle)) * f->magnitude;
        }
        PL_DONE();
    }
    return n;
}

const char *check_position_rows(const pl_plan *plan, const pl_op *op)
{
    const pl_op_position_rows *f = &op->position_rows;
    return f->table.n == plan->buffers[f->out].width * (int64_t)plan->n_ctx ? NULL
                                                                            : "the table does not have a row for each position";
}

int64_t run_position_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_position_rows *f = &op->position_rows;
    const pl_plan_buffer *b = &plan->buffers[f->out];
    int64_t begin, end, n = plan->batch.n_tokens;
    while (PL_TAKE(n, 1, 1)) {
        float *out = pl_row(plan, f->out, begin);
        memcpy(out, f->table.values + plan->batch.positions[begin] * b->width, sizeof(float) * (size_t)b->width);
        memset(out + b->width, 0, sizeof(float) * (size_t)(b->padded - b->width));
        PL_DONE();
    }
    return n;
}

static const char *check_widths(const pl_plan *plan, int x, int out)
{
    int64_t width = out == PL_HIDDEN ? plan->hidden_stride : plan->buffers[out < 0 ? x : out].padded;
    if (out == PL_LOGITS)
        return "only a product gives logits";
    return plan->buffers[x].padded == width ? NULL : "x and out have different widths";
}

const char *check_select(const pl_plan *plan, const pl_op *op) { return check_widths(plan, op->select.x, op->select.out); }
const char *check_copy(const pl_plan *plan, const pl_op *op) { return check_widths(plan, op->copy.x, op->copy.out); }

static int64_t copy_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue, int x, int result, int selected)
{
    int64_t begin, end, stride;
    float *out = pl_result_rows(plan, result, &stride);
    int64_t n = out ? pl_op_rows(plan, op) : 0;
    while (PL_TAKE(n, 1, 1)) {
        int64_t from = selected ? plan->batch.outputs[begin] : begin;
        memcpy(out + begin * stride, pl_row(plan, x, from), sizeof(float) * (size_t)plan->buffers[x].padded);
        PL_DONE();
    }
    return n;
}

int64_t run_select(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return copy_rows(plan, op, queue, op->select.x, op->select.out, 1);
}

int64_t run_copy(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return copy_rows(plan, op, queue, op->copy.x, op->copy.out, 0);
}
