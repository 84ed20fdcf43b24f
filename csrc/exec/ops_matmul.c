/* Products of the rows of the batch with weight matrices. */
#include "exec/adapters.h"
#include "exec/plan.h"
#include "exec/residual_blocks.h"
#include "types/matrix.h"
#include "types/panel.h"

/* Why a matrix cannot be multiplied with rows of x or q8 (or PL_NONE) into `out`. */
static const char *check_product(const pl_plan *plan, const pl_matrix *m, int x, int q8, int out)
{
    if ((q8 >= 0) == (pl_panel_is_float(m->type) != 0))
        return q8 >= 0 ? "a float matrix does not read 8-bit blocks" : "a quantized matrix needs 8-bit blocks";
    if (m->cols != plan->buffers[q8 >= 0 ? q8 : x].width)
        return "a matrix has other columns than its input";
    if (out == PL_LOGITS)
        return m->panels * PL_ROWS == plan->logits_stride ? NULL : "the logits have another size";
    if (out < 0)
        return "a product does not go to the hidden states";
    return m->panels * PL_ROWS <= plan->buffers[out].padded ? NULL : "out is not wide enough for the matrix's rows";
}

static const char *check_gated(const pl_plan *plan, const pl_op *op)
{
    const pl_op_matmul *f = &op->matmul;
    const pl_matrix *gate = f->matrix[0], *up = f->matrix[1];
    if (f->q8 < 0 || f->residual >= 0 || f->out[0] < 0 || f->out[1] != PL_NONE || f->out[2] != PL_NONE || f->matrix[2])
        return "a gated product has two quantized matrices, one output, and no residual";
    if (!gate || !up || gate->type != up->type || gate->panels != up->panels || gate->rows != up->rows || gate->cols != up->cols)
        return "the matrices of a gated product are not alike";
    if ((f->bias[0].n && f->bias[0].n != gate->rows) || (f->bias[1].n && f->bias[1].n != up->rows))
        return "a bias is not as long as its matrix's rows";
    const char *reason = check_product(plan, gate, f->x, f->q8, f->out[0]);
    const int32_t outs[] = {f->out[0], f->out[0], PL_NONE};
    return reason || f->low_rank < 0 ? reason : pl_check_up(plan, &f->up, f->n_adapters, f->low_rank, outs);
}

const char *check_matmul(const pl_plan *plan, const pl_op *op)
{
    const pl_op_matmul *f = &op->matmul;
    if ((f->low_rank >= 0) != (f->up.n > 0))
        return "adapters without rows between A and B, or these without adapters";
    if (f->gated)
        return check_gated(plan, op);
    if (!f->matrix[0])
        return "there is no matrix";
    for (int i = 0; i < 3; i++) {
        const pl_matrix *m = f->matrix[i];
        if ((m != NULL) != (f->out[i] != PL_NONE))
            return "a matrix without an output, or an output without a matrix";
        if (!m)
            continue;
        const char *reason = check_product(plan, m, f->x, f->q8, f->out[i]);
        if (reason)
            return reason;
        if (f->bias[i].n && f->bias[i].n != m->rows)
            return "a bias is not as long as its matrix's rows";
        if (f->q8 < 0 && f->out[i] == f->x)
            return "out is x, whose rows are still needed";
        if (i > 0 && (f->out[i] == PL_LOGITS || f->out[i] == f->residual))
            return "only the first output may be the logits, or the residual";
    }
    if (f->residual >= 0 && (f->out[0] < 0 || plan->buffers[f->residual].stride != plan->buffers[f->out[0]].stride))
        return "the residual is not as wide as out";
    return f->low_rank >= 0 ? pl_check_up(plan, &f->up, f->n_adapters, f->low_rank, f->out) : NULL;
}

/* Work items: units of panels, matrix after matrix, times blocks of tokens. */
typedef struct {
    int64_t unit, first[4]; /* panels of an item; the first item of each matrix */
    int64_t n, at_once, token_blocks;
    int group; /* rows whose residual blocks lie together */
} matmul_items;

/* An item rounds its tokens for itself, so it should have many panels; but each thread some items. */
static int64_t int16_unit(const pl_op_matmul *f, int64_t n, int threads)
{
    int64_t panels = 0;
    for (int i = 0; i < 3; i++)
        panels += f->matrix[i] ? f->matrix[i]->panels : 0;
    const int64_t unit = panels * ((n + PL_TOKENS / 2 - 1) / (PL_TOKENS / 2)) / (4 * threads);
    return unit < 2 ? 2 : unit > PL_INT16_PANELS ? PL_INT16_PANELS : unit;
}

static matmul_items items_of(pl_plan *plan, const pl_op *op, const pl_division *division)
{
    const pl_op_matmul *f = &op->matmul;
    matmul_items w = {.n = pl_op_rows(plan, op)};
    w.unit = w.n == 1 ? 4 : f->gated && f->low_rank < 0 ? 1 : 2;
    if (f->matrix[0]->type & PL_INT16)
        w.unit = int16_unit(f, w.n, division->threads);
    for (int i = 0; i < 3; i++)
        w.first[i + 1] = w.first[i] + (f->matrix[i] && !(f->gated && i) ? (f->matrix[i]->panels + w.unit - 1) / w.unit : 0);
    /* More tokens share the decoding of a panel; fewer leave every thread several items. */
    const int many = w.first[3] * w.n >= 16 * division->threads * PL_TOKENS;
    w.at_once = many ? PL_TOKENS : PL_TOKENS / 2;
    w.token_blocks = (w.n + w.at_once - 1) / w.at_once;
    w.group = pl_residual_group(w.n);
    return w;
}

/* Panels [panel0, panel1) of matrix i with the tokens of a block. */
typedef struct {
    int i;
    int64_t panel0, panel1, token0, token1;
} matmul_item;

/* Items of one matrix that follow each other. */
typedef struct {
    int i;
    int64_t unit0, unit1, end; /* end: the item after them */
} matmul_run;

/* The items from `at` on, up to `end` or to where another matrix comes. Each matrix lies in all nodes' memory, a part of its
 * rows in each (matrix.c): all matrices' rows of a node come before those of the next. */
static matmul_run run_at(const matmul_items *w, const pl_division *division, int64_t at, int64_t end)
{
    int64_t first = 0;
    for (int node = 0; node < division->nodes; node++)
        for (int i = 0; i < 3; i++) {
            const int64_t units = w->first[i + 1] - w->first[i], unit0 = pl_node_cut(division, units, node),
                          last = first + pl_node_cut(division, units, node + 1) - unit0;
            if (at < last) {
                const int64_t stop = end < last ? end : last;
                return (matmul_run){i, unit0 + at - first, unit0 + stop - first, stop};
            }
            first = last;
        }
    return (matmul_run){.end = end};
}

static matmul_item item_at(const pl_op *op, const matmul_items *w, int i, int64_t unit0, int64_t unit1, int64_t block)
{
    const int64_t panels = op->matmul.matrix[i]->panels, token1 = (block + 1) * w->at_once;
    return (matmul_item){.i = i,
                         .panel0 = unit0 * w->unit,
                         .panel1 = unit1 * w->unit < panels ? unit1 * w->unit : panels,
                         .token0 = block * w->at_once,
                         .token1 = token1 < w->n ? token1 : w->n};
}

/* What all products of an item read: its tokens, as the matrix wants them. */
static pl_matmul inputs_of(const pl_plan *plan, const pl_op *op, const matmul_items *w, const matmul_item *at)
{
    const pl_op_matmul *f = &op->matmul;
    const pl_plan_buffer *q8 = f->q8 >= 0 ? &plan->buffers[f->q8] : NULL, *x = &plan->buffers[f->x];
    return (pl_matmul){
        .type = f->matrix[at->i]->type,
        .cols = f->matrix[at->i]->cols,
        .q8 = q8 ? q8->q8 : NULL,
        .q8_stride = q8 ? q8->stride : 0,
        .residual_blocks =
            q8 && w->n > 1 ? (uint8_t *)pl_residual_at(q8->residual, w->group, q8->padded, at->token0 / w->group, 0) : NULL,
        .residual_group = w->group,
        .x = q8 ? NULL : x->floats,
        .x_stride = q8 ? 0 : x->stride,
        .alone = plan->division->threads == 1,
    };
}

static void multiply(pl_plan *plan, const pl_op *op, const matmul_items *w, const matmul_item *at)
{
    const pl_op_matmul *f = &op->matmul;
    const int i = at->i;
    int64_t stride;
    float *out = pl_result_rows(plan, f->out[i], &stride);
    pl_matmul m = inputs_of(plan, op, w, at);
    m.panels = f->matrix[i]->data;
    m.panel0 = at->panel0;
    m.panel1 = at->panel1;
    m.token0 = at->token0;
    m.token1 = at->token1;
    m.up = f->gated ? f->matrix[1]->data : NULL;
    m.bias = f->bias[i].n ? f->bias[i].values : NULL;
    m.up_bias = f->gated && f->bias[1].n ? f->bias[1].values : NULL;
    m.residual = i == 0 && f->residual >= 0 ? plan->buffers[f->residual].floats : NULL;
    m.out = out;
    m.out_stride = stride;
    pl_matmul_run(plan->kernels, &m);
    if (f->low_rank >= 0 && !f->gated && plan->batch.adapter_scales)
        pl_run_up(plan, op,
                  &(pl_up){.up = &f->up,
                           .n_adapters = f->n_adapters,
                           .low_rank = f->low_rank,
                           .product = i,
                           .out = out + at->token0 * stride + at->panel0 * PL_ROWS,
                           .stride = stride,
                           .panel0 = at->panel0,
                           .panel1 = at->panel1,
                           .row0 = at->token0,
                           .row1 = at->token1});
}

/* ---- gated products with what adapters add before the gate ---- */

#define GATED_PANELS 16 /* of an item that are multiplied at once */

/* One of the two matrices, adapters included, in rows of [panel0, panel1) alone. */
static void multiply_apart(pl_plan *plan, const pl_op *op, const matmul_items *w, const matmul_item *at, int matrix, float *out)
{
    const pl_op_matmul *f = &op->matmul;
    const int64_t stride = (at->panel1 - at->panel0) * PL_ROWS;
    pl_matmul m = inputs_of(plan, op, w, at);
    m.panels = f->matrix[matrix]->data + at->panel0 * f->matrix[matrix]->panel_bytes;
    m.panel1 = at->panel1 - at->panel0;
    m.q8 += at->token0 * m.q8_stride;
    m.token1 = at->token1 - at->token0;
    m.bias = f->bias[matrix].n ? f->bias[matrix].values + at->panel0 * PL_ROWS : NULL;
    m.out = out;
    m.out_stride = stride;
    pl_matmul_run(plan->kernels, &m);
    pl_run_up(plan, op,
              &(pl_up){.up = &f->up,
                       .n_adapters = f->n_adapters,
                       .low_rank = f->low_rank,
                       .product = matrix,
                       .out = out,
                       .stride = stride,
                       .panel0 = at->panel0,
                       .panel1 = at->panel1,
                       .row0 = at->token0,
                       .row1 = at->token1});
}

/* Both go to a near cache and from there through the gate: the same numbers that the kernel for both gives where no
 * adapter is used, which has no rows of either in memory. */
static void multiply_gated(pl_plan *plan, const pl_op *op, const matmul_items *w, const matmul_item *item)
{
    _Alignas(64) float gate[2 * PL_TOKENS * PL_ROWS], up[2 * PL_TOKENS * PL_ROWS];
    matmul_item at = *item;
    int64_t n = item->token1 - item->token0, most = 2 * PL_TOKENS / n < GATED_PANELS ? 2 * PL_TOKENS / n : GATED_PANELS;
    for (; at.panel0 < item->panel1; at.panel0 = at.panel1) {
        at.panel1 = at.panel0 + most < item->panel1 ? at.panel0 + most : item->panel1;
        const int64_t width = (at.panel1 - at.panel0) * PL_ROWS;
        multiply_apart(plan, op, w, &at, 0, gate);
        multiply_apart(plan, op, w, &at, 1, up);
        for (int64_t t = 0; t < n; t++)
            plan->kernels->silu_mul(gate + t * width, up + t * width,
                                    pl_row(plan, op->matmul.out[0], item->token0 + t) + at.panel0 * PL_ROWS, width);
    }
}

static void run_item(pl_plan *plan, const pl_op *op, const matmul_items *w, const matmul_item *at)
{
    const pl_op_matmul *f = &op->matmul;
    if (f->gated && f->low_rank >= 0 && pl_rows_use_adapters(plan, op, &f->up, f->n_adapters, at->token0, at->token1))
        multiply_gated(plan, op, w, at);
    else
        multiply(plan, op, w, at);
}

int64_t run_matmul(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const matmul_items w = items_of(plan, op, queue->division);
    queue->is_product = 1;
    int64_t begin, end, stride;
    if (w.n == 0 || !pl_result_rows(plan, op->matmul.out[0], &stride))
        return 0;
    while (PL_TAKE(w.first[3] * w.token_blocks, 1, PL_QUARTER)) {
        for (int64_t at = begin; at < end;) {
            const int64_t block = at / w.first[3], base = block * w.first[3], next = base + w.first[3];
            const matmul_run run = run_at(&w, queue->division, at - base, (end < next ? end : next) - base);
            const matmul_item one = item_at(op, &w, run.i, run.unit0, run.unit1, block);
            run_item(plan, op, &w, &one);
            at = base + run.end;
        }
        PL_DONE();
    }
    return w.first[3] * w.token_blocks;
}

const char *check_gather_residual(const pl_plan *plan, const pl_op *op)
{
    (void)plan;
    (void)op;
    return NULL;
}

/* A single row's residual blocks are read where they are. */
int64_t run_gather_residual(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_plan_buffer *q8 = &plan->buffers[op->gather_residual.q8];
    const int64_t n = pl_op_rows(plan, op), blocks = q8->padded, stride = q8->stride;
    const int64_t chunks = (blocks + PL_CHUNK_BLOCKS - 1) / PL_CHUNK_BLOCKS;
    const int group = pl_residual_group(n);
    int64_t begin, end, items = n > 1 ? (n + group - 1) / group * chunks : 0;
    while (PL_TAKE(items, 1, 1)) {
        int64_t token = begin / chunks * group, block = begin % chunks * PL_CHUNK_BLOCKS;
        pl_residual_gather(q8->q8 + token * stride + block, stride,
                           (int)(blocks - block < PL_CHUNK_BLOCKS ? blocks - block : PL_CHUNK_BLOCKS),
                           (int)(n - token < group ? n - token : group),
                           pl_residual_at(q8->residual, group, blocks, begin / chunks, begin % chunks));
        PL_DONE();
    }
    return items;
}

/* ---- squares of the columns of a product's input: what an importance matrix is made of ---- */

#define COLUMNS 64 /* of one work item: whole cache lines of every row */

const char *check_squares(const pl_plan *plan, const pl_op *op)
{
    return op->squares.sums.n == plan->buffers[op->squares.x].width ? NULL : "there is not a sum for each column of x";
}

/* Rows are added in their order, whichever thread has the columns: the sums do not depend on the number of threads. */
int64_t run_squares(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_squares *f = &op->squares;
    const pl_plan_buffer *b = &plan->buffers[f->x];
    int64_t n = pl_op_rows(plan, op), pieces = n ? (b->width + COLUMNS - 1) / COLUMNS : 0, begin, end;
    while (PL_TAKE(pieces, 1, 1)) {
        int64_t column = begin * COLUMNS, width = b->width - column < COLUMNS ? b->width - column : COLUMNS;
        const float *x = b->floats + column;
        double *sums = f->sums.values + column;
        for (int64_t i = 0; i < n; i++, x += b->stride)
            for (int64_t c = 0; c < width; c++)
                sums[c] += (double)x[c] * (double)x[c];
        PL_DONE();
    }
    return pieces;
}
