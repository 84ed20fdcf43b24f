/* Adapters (LoRA): what those of a row's sequence add to the row's products, sum over adapters of scale * factor * B (A x).
 *
 * Any number of adapters is there, and a batch mixes sequences that use some of them, or none, each at a scale of its own
 * (pl_batch.adapter_scales; 0: not used). Lists of matrices have n_adapters items for each product, NULL where an adapter
 * leaves the product as it is. adapter_down multiplies with every A, side by side in `out`, each in whole panels of columns;
 * the product itself (`up` of a matmul) multiplies those columns with the B's and adds them to its own rows while they are in
 * the cache, adapter after adapter; adapter_up does it for rows that are not products. Neighbouring rows
 * that use an adapter go through its matrices together, others are not touched: a row has the same bits in every batch, and
 * without adapters those that it has where there are none. */
#include "exec/adapters.h"
#include "exec/plan.h"
#include "types/blocks.h"
#include "types/matrix.h"
#include "types/panel.h"
#include <string.h>

#define ROWS_OF_ITEM 60 /* whole tiles of tokens on every tier: of 12, 6, 5 or 4 */
#define UP_PANELS 8 /* of an item */

/* ---- rows and their scales ---- */

/* The token of a row of the op. */
static int64_t token_of(const pl_plan *plan, const pl_op *op, int64_t row)
{
    const int64_t i = op->head.times == 1 ? row : row / op->head.times;
    return op->head.rows == PL_ROWS_TOKENS ? i : plan->batch.outputs[i];
}

static float scale_of(const pl_plan *plan, const pl_op *op, int64_t row, int adapter)
{
    const pl_batch *b = &plan->batch;
    return b->adapter_scales[(int64_t)b->sequences[token_of(plan, op, row)] * b->n_adapters + adapter];
}

/* The first row from `row` on, at most `end`, that is of another sequence: all before it have the same scales. */
static int64_t sequence_end(const pl_plan *plan, const pl_op *op, int64_t row, int64_t end)
{
    const int32_t *sequences = plan->batch.sequences, sequence = sequences[token_of(plan, op, row)];
    if (op->head.rows == PL_ROWS_TOKENS && op->head.times == 1)
        while (++row < end && sequences[row] == sequence)
            ;
    else
        while (++row < end && sequences[token_of(plan, op, row)] == sequence)
            ;
    return row;
}

/* The next run of rows from *row on, below `end`, that use the adapter -> its end; *row >= end: there is none. */
static int64_t next_run(const pl_plan *plan, const pl_op *op, int adapter, int64_t *row, int64_t end)
{
    int64_t last;
    while (*row < end && scale_of(plan, op, *row, adapter) == 0)
        *row = sequence_end(plan, op, *row, end);
    for (last = *row; last < end && scale_of(plan, op, last, adapter) != 0;)
        last = sequence_end(plan, op, last, end);
    return last;
}

int pl_rows_use_adapters(const pl_plan *plan, const pl_op *op, const pl_matrices *up, int n_adapters, int64_t row, int64_t end)
{
    for (int64_t i = 0; i < up->n && plan->batch.adapter_scales; i++) {
        int64_t first = row;
        if (up->items[i] && next_run(plan, op, (int)(i % n_adapters), &first, end) > first)
            return 1;
    }
    return 0;
}

static int64_t row_blocks(const pl_plan *plan, const pl_op *op)
{
    return plan->batch.adapter_scales ? (pl_op_rows(plan, op) + ROWS_OF_ITEM - 1) / ROWS_OF_ITEM : 0;
}

static int64_t block_end(const pl_plan *plan, const pl_op *op, int64_t block)
{
    int64_t n = pl_op_rows(plan, op), end = (block + 1) * ROWS_OF_ITEM;
    return end < n ? end : n;
}

/* Columns that a matrix of `n` ranks takes in the rows between down and up. */
static int64_t columns_of(int64_t n) { return (n + PL_ROWS - 1) / PL_ROWS * PL_ROWS; }

/* ---- adapter_down ---- */

const char *check_adapter_down(const pl_plan *plan, const pl_op *op)
{
    const pl_op_adapter_down *f = &op->adapter_down;
    int64_t columns = 0;
    if (f->n_adapters < 1 || f->matrices.n % f->n_adapters || f->factors.n != f->matrices.n)
        return "there is not a matrix and a factor for each adapter of each product";
    for (int64_t i = 0; i < f->matrices.n; i++) {
        const pl_matrix *m = f->matrices.items[i];
        if (m && (!pl_panel_is_float(m->type) || m->cols != plan->buffers[f->x].width))
            return "a matrix is not of floats, or has other columns than its input";
        columns += m ? m->panels * PL_ROWS : 0;
    }
    return columns <= plan->buffers[f->out].padded && f->out != f->x ? NULL : "out is x, or not wide enough for the matrices' rows";
}

/* Rows [row, end) of `out` from `column` on: a panel of m times x, times factor and scale. */
static void down_panel(pl_plan *plan, const pl_op *op, int64_t i, int64_t panel, int64_t column, int64_t row, int64_t end)
{
    const pl_op_adapter_down *f = &op->adapter_down;
    const pl_matrix *m = f->matrices.items[i];
    const int adapter = (int)(i % f->n_adapters);
    const pl_plan_buffer *x = &plan->buffers[f->x], *out = &plan->buffers[f->out];
    for (int64_t last; (last = next_run(plan, op, adapter, &row, end)) > row; row = last) {
        pl_matmul_run(plan->kernels, &(pl_matmul){.type = m->type,
                                                  .panels = m->data,
                                                  .cols = m->cols,
                                                  .panel0 = panel,
                                                  .panel1 = panel + 1,
                                                  .x = x->floats,
                                                  .x_stride = x->stride,
                                                  .token0 = row,
                                                  .token1 = last,
                                                  .out = out->floats + column,
                                                  .out_stride = out->stride});
        for (int64_t r = row; r < last; r++) {
            float *y = pl_row(plan, f->out, r) + column + panel * PL_ROWS, scale = f->factors.values[i] * scale_of(plan, op, r, adapter);
            for (int c = 0; c < PL_ROWS; c++)
                y[c] *= scale;
        }
    }
}

/* An item is a panel of one of the matrices, with a block of rows. */
int64_t run_adapter_down(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_adapter_down *f = &op->adapter_down;
    int64_t begin, end, panels = 0, blocks = row_blocks(plan, op);
    for (int64_t i = 0; i < f->matrices.n; i++)
        panels += f->matrices.items[i] ? f->matrices.items[i]->panels : 0;
    while (PL_TAKE(panels * blocks, 1, 1)) {
        int64_t i = 0, panel = begin % panels, column = 0, block = begin / panels;
        for (; !f->matrices.items[i] || panel >= f->matrices.items[i]->panels; i++)
            if (f->matrices.items[i]) {
                panel -= f->matrices.items[i]->panels;
                column += f->matrices.items[i]->panels * PL_ROWS;
            }
        down_panel(plan, op, i, panel, column, block * ROWS_OF_ITEM, block_end(plan, op, block));
        PL_DONE();
    }
    return panels * blocks;
}

/* ---- adapter_up, and what it shares with the products ---- */

const char *pl_check_up(const pl_plan *plan, const pl_matrices *up, int n_adapters, int low_rank, const int32_t *out)
{
    int64_t columns = 0;
    if (n_adapters < 1 || up->n < 1 || up->n % n_adapters || up->n / n_adapters > 3)
        return "there is not a matrix for each adapter of each of up to 3 products";
    for (int i = 0; i < 3; i++)
        if ((out[i] != PL_NONE) != (i < up->n / n_adapters) || out[i] == low_rank || out[i] == PL_HIDDEN)
            return "there is not an output for each product, or it is low_rank or the hidden states";
    for (int64_t i = 0; i < up->n; i++) {
        const pl_matrix *m = up->items[i];
        const int to = out[i / n_adapters];
        if (m && (!pl_panel_is_float(m->type) ||
                  m->panels * PL_ROWS > (to == PL_LOGITS ? plan->logits_stride : plan->buffers[to].padded)))
            return "a matrix of an adapter is not of floats, or out is not wide enough for its rows";
        columns += m ? columns_of(m->cols) : 0;
    }
    return columns <= plan->buffers[low_rank].padded ? NULL : "low_rank is not as wide as all the matrices' columns";
}

void pl_run_up(pl_plan *plan, const pl_op *op, const pl_up *f)
{
    const pl_plan_buffer *x = &plan->buffers[f->low_rank];
    int64_t column = 0;
    for (int64_t i = 0; i < (int64_t)(f->product + 1) * f->n_adapters; i++) {
        const pl_matrix *m = f->up->items[i];
        int64_t row = f->row0, first = column;
        column += m ? columns_of(m->cols) : 0;
        if (!m || i < (int64_t)f->product * f->n_adapters || f->panel0 >= m->panels)
            continue;
        for (int64_t last; (last = next_run(plan, op, (int)(i % f->n_adapters), &row, f->row1)) > row; row = last) {
            float *out = f->out + (row - f->row0) * f->stride;
            pl_matmul_run(plan->kernels, &(pl_matmul){.type = m->type,
                                                      .panels = m->data + f->panel0 * m->panel_bytes,
                                                      .cols = m->cols,
                                                      .panel1 = (f->panel1 < m->panels ? f->panel1 : m->panels) - f->panel0,
                                                      .x = pl_row(plan, f->low_rank, row) + first,
                                                      .x_stride = x->stride,
                                                      .token1 = last - row,
                                                      .residual = out,
                                                      .out = out,
                                                      .out_stride = f->stride});
        }
    }
}

const char *check_adapter_up(const pl_plan *plan, const pl_op *op)
{
    const pl_op_adapter_up *f = &op->adapter_up;
    return pl_check_up(plan, &f->matrices, f->n_adapters, f->x, (int32_t[]){f->out, PL_NONE, PL_NONE});
}

/* An item is a few panels, with a block of rows. */
int64_t run_adapter_up(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_adapter_up *f = &op->adapter_up;
    int64_t begin, end, stride, items = (plan->buffers[f->out].padded / PL_ROWS + UP_PANELS - 1) / UP_PANELS;
    int64_t blocks = row_blocks(plan, op);
    float *out = pl_result_rows(plan, f->out, &stride);
    while (PL_TAKE(items * blocks, 1, 1)) {
        int64_t panel = begin % items * UP_PANELS, block = begin / items;
        pl_run_up(plan, op,
                  &(pl_up){.up = &f->matrices,
                           .n_adapters = f->n_adapters,
                           .low_rank = f->x,
                           .out = out + block * ROWS_OF_ITEM * stride + panel * PL_ROWS,
                           .stride = stride,
                           .panel0 = panel,
                           .panel1 = panel + UP_PANELS,
                           .row0 = block * ROWS_OF_ITEM,
                           .row1 = block_end(plan, op, block)});
        PL_DONE();
    }
    return items * blocks;
}

/* ---- adapter_embed: A is a table, of which the tokens' rows are looked up ---- */

const char *check_adapter_embed(const pl_plan *plan, const pl_op *op)
{
    const pl_op_adapter_embed *f = &op->adapter_embed;
    const pl_type_info *info = pl_type_find(f->table.type);
    if (f->adapter < 0 || f->adapter >= 1 << 20)
        return "there is no such adapter";
    return f->table.row_bytes / info->block_bytes * info->block_elements == plan->buffers[f->out].width
               ? NULL
               : "out is not as wide as the table";
}

int64_t run_adapter_embed(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_adapter_embed *f = &op->adapter_embed;
    const pl_plan_buffer *out = &plan->buffers[f->out];
    int64_t begin, end, n = plan->batch.adapter_scales ? plan->batch.n_tokens : 0;
    while (PL_TAKE(n, 1, 1)) {
        float *y = pl_row(plan, f->out, begin), scale = f->factor * scale_of(plan, op, begin, f->adapter);
        int64_t token = plan->batch.tokens[begin];
        memset(y, 0, sizeof(float) * (size_t)out->padded);
        if (token >= 0) /* otherwise an image's row stands there */
            pl_dequantize(f->table.type, f->table.data + token * f->table.row_bytes, y, out->width);
        for (int64_t c = 0; c < out->width; c++)
            y[c] *= scale;
        PL_DONE();
    }
    return n;
}

/* ---- experts: an item is a few panels of one expert, with all rows of its segment ---- */

typedef struct {
    const pl_matrices *matrices;
    int x, ends, order, adapter, out;
    float factor; /* of down; 0: up, which adds */
} experts_op;

static experts_op experts_of(const pl_op *op)
{
    if (op->head.kind == PL_OP_adapter_experts_down) {
        const pl_op_adapter_experts_down *f = &op->adapter_experts_down;
        return (experts_op){&f->matrices, f->x, f->ends, f->order, f->adapter, f->out, f->factor};
    }
    const pl_op_adapter_experts_up *f = &op->adapter_experts_up;
    return (experts_op){&f->matrices, f->x, f->ends, f->order, f->adapter, f->out, 0};
}

static const char *check_experts(const pl_plan *plan, const pl_op *op)
{
    const experts_op f = experts_of(op);
    const pl_matrix *first = f.matrices->items[0];
    if (f.adapter < 0 || f.adapter >= 1 << 20 || plan->buffers[f.ends].width != f.matrices->n)
        return "there is no such adapter, or ends is not as wide as there are matrices";
    for (int64_t i = 0; i < f.matrices->n; i++) {
        const pl_matrix *m = f.matrices->items[i];
        if (m->type != first->type || m->rows != first->rows || m->cols != first->cols || !pl_panel_is_float(m->type))
            return "the matrices are not alike, or not of floats";
    }
    if (first->cols > plan->buffers[f.x].padded || first->panels * PL_ROWS > plan->buffers[f.out].padded || f.x == f.out)
        return "x or out is not wide enough for the matrices, or they are the same";
    return NULL;
}

const char *check_adapter_experts_down(const pl_plan *plan, const pl_op *op)
{
    return op->adapter_experts_down.factor == 0 ? "the factor is 0" : check_experts(plan, op);
}
const char *check_adapter_experts_up(const pl_plan *plan, const pl_op *op) { return check_experts(plan, op); }

/* The scale of row j of the experts' order; a row that does not exist ends the run with an error. */
static float expert_scale(pl_plan *plan, const pl_op *op, const experts_op *f, int64_t j)
{
    int64_t pair = pl_int_row(plan, f->order, j)[0];
    if (pair >= 0 && pair < pl_op_rows(plan, op))
        return scale_of(plan, op, pair, f->adapter);
    pl_plan_fail(plan, PL_EINVAL);
    return 0;
}

/* Rows [row, last) of one expert, which all use the adapter. */
static void expert_panels(pl_plan *plan, const pl_op *op, const experts_op *f, const pl_matrix *m, int64_t panel, int64_t row,
                          int64_t last)
{
    const pl_plan_buffer *x = &plan->buffers[f->x], *out = &plan->buffers[f->out];
    const int64_t panel1 = panel + UP_PANELS < m->panels ? panel + UP_PANELS : m->panels;
    pl_matmul_run(plan->kernels, &(pl_matmul){.type = m->type,
                                              .panels = m->data,
                                              .cols = m->cols,
                                              .panel0 = panel,
                                              .panel1 = panel1,
                                              .x = x->floats,
                                              .x_stride = x->stride,
                                              .token0 = row,
                                              .token1 = last,
                                              .residual = f->factor == 0 ? out->floats : NULL,
                                              .out = out->floats,
                                              .out_stride = out->stride});
    for (int64_t r = row; r < last && f->factor != 0; r++) {
        float *y = pl_row(plan, f->out, r), scale = f->factor * expert_scale(plan, op, f, r);
        for (int64_t c = panel * PL_ROWS; c < panel1 * PL_ROWS; c++)
            y[c] *= scale;
    }
}

static int64_t run_experts(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const experts_op f = experts_of(op);
    const int64_t units = (f.matrices->items[0]->panels + UP_PANELS - 1) / UP_PANELS, rows = pl_op_rows(plan, op);
    const int64_t items = plan->batch.adapter_scales ? f.matrices->n * units : 0;
    int64_t begin, end;
    while (PL_TAKE(items, 1, 1)) {
        int64_t s = begin / units, panel = begin % units * UP_PANELS;
        const int32_t *ends = pl_int_row(plan, f.ends, 0);
        int64_t row = s > 0 ? ends[s - 1] : 0, stop = ends[s];
        if (row < 0 || stop > rows || row > stop)
            pl_plan_fail(plan, PL_EINVAL);
        else
            for (int64_t last; row < stop; row = last) {
                int used = expert_scale(plan, op, &f, row) != 0;
                for (last = row + 1; last < stop && last - row < ROWS_OF_ITEM && (expert_scale(plan, op, &f, last) != 0) == used;)
                    last++;
                if (used)
                    expert_panels(plan, op, &f, f.matrices->items[s], panel, row, last);
            }
        PL_DONE();
    }
    return items;
}

int64_t run_adapter_experts_down(pl_plan *plan, const pl_op *op, pl_work_queue *queue) { return run_experts(plan, op, queue); }
int64_t run_adapter_experts_up(pl_plan *plan, const pl_op *op, pl_work_queue *queue) { return run_experts(plan, op, queue); }
