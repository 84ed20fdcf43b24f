/* Rows in another order, and products of each run of them with a matrix of its own: experts.
 *
 * top_k says which k segments (experts) each row goes to; segment_rows sorts the (row, slot) pairs by segment:
 *     order[j] = row * k + slot of the j-th pair, place[row][slot] = j, ends[s] = the pairs of segments 0 … s.
 * gather_rows copies rows into that order, segment_matmul multiplies each segment's with its matrix, and scatter_rows adds a
 * row's k results up again, in the order of its slots: so a row's bits do not depend on the other rows. Pairs whose id is not
 * that of a segment come last in the order, belong to none, and have the place -1: nothing is added for them.
 *
 * Matrices may stay in a file: request_experts has those read that have rows (expert_memory.h), and the products work on the
 * segments in the order in which their matrices come. Which that is changes no row's bits.
 *
 * Where rows are is known only when the plan runs. What is read from an int buffer is checked there: a row that does not exist
 * ends the run with an error (pl_plan_run), since a plan that computes it is wrong. */
#include "exec/plan.h"
#include "exec/residual_blocks.h"
#include "types/matrix.h"
#include "types/panel.h"
#include <string.h>

static int row_ok(pl_plan *plan, int64_t row, int64_t n_rows)
{
    if (row >= 0 && row < n_rows)
        return 1;
    pl_plan_fail(plan, PL_EINVAL);
    return 0;
}

/* ---- top_k ---- */

const char *check_top_k(const pl_plan *plan, const pl_op *op)
{
    const pl_op_top_k *f = &op->top_k;
    if (f->k < 1 || f->k > plan->buffers[f->x].width)
        return "k is not between 1 and the width of x";
    return plan->buffers[f->ids].width == f->k && plan->buffers[f->values].width == f->k && f->values != f->x
               ? NULL
               : "ids and values are not k wide, or values is x";
}

/* Equal values: the lower place first. NaN counts as less than everything. */
static void top_k_of(const float *x, int n, int k, int32_t *ids, float *values)
{
    for (int slot = 0; slot < k; slot++) {
        int best = -1;
        for (int i = 0; i < n; i++) {
            int taken = 0;
            for (int j = 0; j < slot; j++)
                taken |= ids[j] == i;
            if (!taken && (best < 0 || x[i] > x[best] || (x[best] != x[best] && x[i] == x[i])))
                best = i;
        }
        ids[slot] = best;
        values[slot] = x[best];
    }
}

int64_t run_top_k(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_top_k *f = &op->top_k;
    int64_t n = pl_op_rows(plan, op), begin, end;
    while (PL_TAKE(n, 1, 1)) {
        top_k_of(pl_row(plan, f->x, begin), (int)plan->buffers[f->x].width, f->k, pl_int_row(plan, f->ids, begin),
                 pl_row(plan, f->values, begin));
        PL_DONE();
    }
    return n;
}

/* ---- segment_rows: one item, a counting sort ---- */

const char *check_segment_rows(const pl_plan *plan, const pl_op *op)
{
    const pl_op_segment_rows *f = &op->segment_rows;
    const pl_plan_buffer *b = plan->buffers;
    if (f->k < 1 || f->n_segments < 1 || b[f->ids].width != f->k || b[f->place].width != f->k ||
        b[f->ends].width != f->n_segments)
        return "ids and place are not k wide, or ends is not as wide as the segments";
    if (b[f->place].rows < op->head.times || b[f->order].rows < (int64_t)op->head.times * f->k || b[f->order].width != 1)
        return "order has not a row for each pair, or place not one for each row";
    if (f->order == f->ids || f->order == f->place || f->order == f->ends || f->ids == f->place || f->ids == f->ends ||
        f->place == f->ends)
        return "ids, order, place and ends are not different buffers";
    return NULL;
}

int64_t run_segment_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_segment_rows *f = &op->segment_rows;
    int64_t n = pl_op_rows(plan, op), begin, end;
    while (PL_TAKE(1, 1, 1)) {
        int32_t *ends = pl_int_row(plan, f->ends, 0), at = 0;
        for (int s = 0; s < f->n_segments; s++)
            ends[s] = 0;
        for (int64_t i = 0; i < n; i++)
            for (int slot = 0; slot < f->k; slot++) {
                int32_t id = pl_int_row(plan, f->ids, i)[slot];
                if (id >= 0 && id < f->n_segments)
                    ends[id]++;
            }
        for (int s = 0; s < f->n_segments; s++) { /* for now: where the segment begins */
            int32_t count = ends[s];
            ends[s] = at;
            at += count;
        }
        for (int64_t i = 0; i < n; i++)
            for (int slot = 0; slot < f->k; slot++) {
                int32_t id = pl_int_row(plan, f->ids, i)[slot], in_segment = id >= 0 && id < f->n_segments;
                int32_t j = in_segment ? ends[id]++ : at++;
                pl_int_row(plan, f->order, j)[0] = (int32_t)(i * f->k + slot);
                pl_int_row(plan, f->place, i)[slot] = in_segment ? j : -1;
            }
        PL_DONE();
    }
    return 1;
}

/* ---- gather_rows, scatter_rows ---- */

const char *check_gather_rows(const pl_plan *plan, const pl_op *op)
{
    const pl_op_gather_rows *f = &op->gather_rows;
    if (f->k < 1 || plan->buffers[f->x].width != plan->buffers[f->out].width || f->x == f->out)
        return "x and out have different widths, or are the same, or k is not positive";
    return f->factors == PL_NONE || (plan->buffers[f->factors].width == f->k && f->factors != f->out) ? NULL
                                                                                                      : "factors are not k wide";
}

int64_t run_gather_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_gather_rows *f = &op->gather_rows;
    const pl_plan_buffer *x = &plan->buffers[f->x];
    int64_t n = pl_op_rows(plan, op), begin, end, rows = x->rows * plan->max_tokens;
    if (f->factors >= 0 && plan->buffers[f->factors].rows * plan->max_tokens < rows)
        rows = plan->buffers[f->factors].rows * plan->max_tokens;
    while (PL_TAKE(n, 1, 1)) {
        int64_t pair = pl_int_row(plan, f->order, begin)[0];
        float *out = pl_row(plan, f->out, begin);
        if (pair >= 0 && row_ok(plan, pair / f->k, rows)) {
            const float *from = pl_row(plan, f->x, pair / f->k);
            const float factor = f->factors >= 0 ? pl_row(plan, f->factors, pair / f->k)[pair % f->k] : 1.0f;
            for (int64_t c = 0; c < x->padded; c++)
                out[c] = f->factors >= 0 ? from[c] * factor : from[c];
        } else {
            row_ok(plan, -1, rows);
        }
        PL_DONE();
    }
    return n;
}

const char *check_scatter_rows(const pl_plan *plan, const pl_op *op)
{
    const pl_op_scatter_rows *f = &op->scatter_rows;
    const pl_plan_buffer *b = plan->buffers;
    if (f->k < 1 || b[f->x].width != b[f->out].width || f->x == f->out || b[f->place].width < f->k)
        return "x and out have different widths, or are the same, or place is not k wide";
    if (f->residual >= 0 && b[f->residual].width != b[f->out].width)
        return "the residual is not as wide as out";
    return f->factors == PL_NONE || (b[f->factors].width >= f->k && f->factors != f->out) ? NULL : "factors are not k wide";
}

int64_t run_scatter_rows(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_scatter_rows *f = &op->scatter_rows;
    const pl_plan_buffer *x = &plan->buffers[f->x];
    int64_t n = pl_op_rows(plan, op), begin, end;
    while (PL_TAKE(n, 1, 1)) {
        float *out = pl_row(plan, f->out, begin);
        if (f->residual < 0)
            memset(out, 0, sizeof(float) * (size_t)x->padded);
        else if (f->residual != f->out)
            memcpy(out, pl_row(plan, f->residual, begin), sizeof(float) * (size_t)x->padded);
        for (int slot = 0; slot < f->k; slot++) {
            int64_t j = pl_int_row(plan, f->place, begin)[slot];
            if (j == -1)
                continue;
            const float factor = f->factors >= 0 ? pl_row(plan, f->factors, begin)[slot] : 1.0f;
            const float *from = row_ok(plan, j, x->rows * plan->max_tokens) ? pl_row(plan, f->x, j) : out;
            for (int64_t c = 0; c < x->padded; c++)
                out[c] += from[c] * factor;
        }
        PL_DONE();
    }
    return n;
}

/* ---- request_experts, expect_experts: one item ---- */

/* Matrices that are read into one memory, that of the plan. */
static const char *check_stored(const pl_plan *plan, const pl_matrices *matrices)
{
    const pl_expert_memory *memory = plan->experts;
    for (int64_t i = 0; i < matrices->n; i++) {
        const struct pl_stored_matrix *stored = matrices->items[i]->stored;
        if (!stored || !pl_expert_memory_of(stored) || (memory && pl_expert_memory_of(stored) != memory))
            return "a matrix is not in a file, or its memory has not been started, or is not that of the others";
        memory = pl_expert_memory_of(stored);
    }
    return NULL;
}

const char *check_request_experts(const pl_plan *plan, const pl_op *op)
{
    const pl_op_request_experts *f = &op->request_experts;
    const pl_plan_buffer *b = plan->buffers;
    if (f->matrices.n % b[f->ends].width || b[f->queue].width != f->matrices.n || f->queue == f->ends)
        return "there is not a matrix, and a place in the queue, for each segment of each product";
    return check_stored(plan, &f->matrices);
}

int64_t run_request_experts(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_request_experts *f = &op->request_experts;
    const int n_segments = (int)plan->buffers[f->ends].width;
    int64_t begin, end;
    while (PL_TAKE(1, 1, 1)) {
        pl_expert_request(plan->experts, f->matrices.items, (int)(f->matrices.n / n_segments), n_segments,
                          pl_int_row(plan, f->ends, 0), pl_int_row(plan, f->queue, 0));
        PL_DONE();
    }
    return 1;
}

const char *check_expect_experts(const pl_plan *plan, const pl_op *op)
{
    const pl_op_expect_experts *f = &op->expect_experts;
    if (f->matrices.n % plan->buffers[f->ends].width)
        return "there is not a matrix for each segment of each product";
    return check_stored(plan, &f->matrices);
}

int64_t run_expect_experts(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_expect_experts *f = &op->expect_experts;
    const int n_segments = (int)plan->buffers[f->ends].width;
    int64_t begin, end;
    while (PL_TAKE(1, 1, 1)) {
        pl_expert_expect(plan->experts, f->matrices.items, (int)(f->matrices.n / n_segments), n_segments,
                         pl_int_row(plan, f->ends, 0), f->if_most);
        PL_DONE();
    }
    return 1;
}

/* ---- segment_matmul: an item is a run of panels of one matrix, with all rows of its segment ---- */

const char *check_segment_matmul(const pl_plan *plan, const pl_op *op)
{
    const pl_op_segment_matmul *f = &op->segment_matmul;
    const pl_matrix *first = f->matrices.items[0];
    if (plan->buffers[f->ends].width != f->matrices.n)
        return "ends is not as wide as there are matrices";
    for (int64_t i = 0; i < f->matrices.n; i++) {
        const pl_matrix *m = f->matrices.items[i];
        if (m->type != first->type || m->rows != first->rows || m->cols != first->cols)
            return "the matrices are not alike";
        if ((m->stored != NULL) != (f->queue >= 0))
            return "a matrix in a file that was not requested, or a request for one that is not in a file";
    }
    if ((f->q8 >= 0) == (pl_panel_is_float(first->type) != 0))
        return f->q8 >= 0 ? "a float matrix does not read 8-bit blocks" : "a quantized matrix needs 8-bit blocks";
    if (first->cols != plan->buffers[f->q8 >= 0 ? f->q8 : f->x].width)
        return "the matrices have other columns than their input";
    if (f->q8 < 0 && f->out == f->x)
        return "out is x, whose rows are still needed";
    if (f->queue >= 0 && (f->product < 0 || (f->product + (int64_t)1) * f->matrices.n > plan->buffers[f->queue].width))
        return "the queue has no such product";
    return first->panels * PL_ROWS <= plan->buffers[f->out].padded ? NULL : "out is not wide enough for the matrices' rows";
}

static int64_t chunks_of(int64_t cols) { return (cols + PL_CHUNK - 1) / PL_CHUNK; }

int64_t pl_segment_scratch(const pl_op *op, const pl_plan_buffer *buffers, int n_buffers, int max_tokens)
{
    (void)max_tokens;
    if (op->segment_matmul.q8 < 0 || op->segment_matmul.q8 >= n_buffers)
        return 0;
    return chunks_of(buffers[op->segment_matmul.q8].width) * pl_residual_bytes(PL_RESIDUAL_GROUP);
}

/* Rows' residual blocks, gathered in this thread's scratch; NULL for a single row, where they are read in place. */
static uint8_t *gathered(const pl_plan *plan, const pl_plan_buffer *q8, int64_t row, int n, int group, int thread)
{
    uint8_t *room = pl_scratch(plan, thread);
    for (int64_t token = 0; token < n && n > 1; token += group)
        for (int64_t chunk = 0; chunk < chunks_of(q8->width); chunk++) {
            int64_t block = chunk * PL_CHUNK_BLOCKS;
            pl_residual_gather(q8->q8 + (row + token) * q8->stride + block, q8->stride,
                               (int)(q8->padded - block < PL_CHUNK_BLOCKS ? q8->padded - block : PL_CHUNK_BLOCKS),
                               (int)(n - token < group ? n - token : group),
                               pl_residual_at(room, group, q8->padded, token / group, chunk));
        }
    return n > 1 ? room : NULL;
}

/* Panels [panel0, panel1) of m, which lie at `panels`, with `n` rows from `row`. */
static void multiply(pl_plan *plan, const pl_op *op, const pl_matrix *m, const uint8_t *panels, int64_t panel0, int64_t panel1,
                     int64_t row, int n, int thread)
{
    const pl_op_segment_matmul *f = &op->segment_matmul;
    const pl_plan_buffer *q8 = f->q8 >= 0 ? &plan->buffers[f->q8] : NULL;
    const int group = pl_residual_group(n);
    pl_matmul_run(plan->kernels, &(pl_matmul){
                                     .type = m->type,
                                     .panels = panels,
                                     .cols = m->cols,
                                     .panel0 = panel0,
                                     .panel1 = panel1 < m->panels ? panel1 : m->panels,
                                     .q8 = q8 ? q8->q8 + row * q8->stride : NULL,
                                     .q8_stride = q8 ? q8->stride : 0,
                                     .residual_blocks = q8 ? gathered(plan, q8, row, n, group, thread) : NULL,
                                     .residual_group = group,
                                     .x = q8 ? NULL : pl_row(plan, f->x, row),
                                     .x_stride = q8 ? 0 : plan->buffers[f->x].stride,
                                     .token0 = 0,
                                     .token1 = n,
                                     .out = pl_row(plan, f->out, row),
                                     .out_stride = plan->buffers[f->out].stride,
                                 });
}

/* An item of segment s: all its rows, with a run of panels. */
static void multiply_segment(pl_plan *plan, const pl_op *op, int64_t s, int64_t panel0, int64_t panel1, int thread)
{
    const pl_op_segment_matmul *f = &op->segment_matmul;
    const pl_matrix *m = f->matrices.items[s];
    const int32_t *ends = pl_int_row(plan, f->ends, 0);
    int64_t row = s > 0 ? ends[s - 1] : 0, last = ends[s], rows = pl_op_rows(plan, op);
    if (row == last || !row_ok(plan, row, rows) || !row_ok(plan, last - 1, rows))
        return;
    const uint8_t *panels = m->stored ? pl_expert_acquire(m->stored) : m->data;
    if (!panels)
        pl_plan_fail(plan, PL_EREAD);
    for (; row < last && panels; row += PL_RESIDUAL_GROUP)
        multiply(plan, op, m, panels, panel0, panel1, row, (int)(last - row < PL_RESIDUAL_GROUP ? last - row : PL_RESIDUAL_GROUP),
                 thread);
}

static const pl_division undivided = {.threads = 1, .nodes = 1, .cut = {0, PL_WHOLE}, .node_first = {0, 1}};

/* Segments in the order of the queue, for whichever thread comes: none may wait for a matrix that gets its slot only when a
 * later one in another thread's part has been worked on. */
static int64_t run_queued(pl_plan *plan, const pl_op *op, pl_work_queue *shared, int64_t unit, int64_t items)
{
    const pl_op_segment_matmul *f = &op->segment_matmul;
    const int64_t n = f->matrices.n * items;
    pl_work_queue in_order = *shared, *queue = &in_order;
    int64_t begin, end, grain = 1;
    queue->thread = 0;
    queue->division = &undivided;
    while (PL_TAKE(n, 1, grain)) {
        const int32_t s = pl_int_row(plan, f->queue, 0)[f->product * f->matrices.n + begin / items];
        if (s >= 0 && s < f->matrices.n) {
            multiply_segment(plan, op, s, begin % items * unit, (begin % items + 1) * unit, shared->thread);
            pl_expert_release(f->matrices.items[s]->stored);
        } else {
            grain = n; /* all that is left */
        }
        PL_DONE();
    }
    shared->finished = in_order.finished;
    return n;
}

int64_t run_segment_matmul(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_segment_matmul *f = &op->segment_matmul;
    const int64_t panels = f->matrices.items[0]->panels, unit = pl_segment_unit(panels), items = pl_segment_items(panels);
    int64_t begin, end;
    if (f->queue >= 0)
        return run_queued(plan, op, queue, unit, items);
    while (PL_TAKE(f->matrices.n * items, 1, 1)) {
        multiply_segment(plan, op, begin / items, begin % items * unit, (begin % items + 1) * unit, queue->thread);
        PL_DONE();
    }
    return f->matrices.n * items;
}

/* ---- segment_squares: what an importance matrix of experts is made of; an item is some columns of one segment ---- */

#define COLUMNS 64 /* of an item: whole cache lines of every row */

const char *check_segment_squares(const pl_plan *plan, const pl_op *op)
{
    const pl_op_segment_squares *f = &op->segment_squares;
    int64_t n = plan->buffers[f->ends].width;
    return f->counts.n == n && f->sums.n == n * plan->buffers[f->x].width
               ? NULL
               : "there is not a count for each segment, or not a sum for each of its columns";
}

/* Rows are added in their order, whichever thread has the columns. */
int64_t run_segment_squares(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_segment_squares *f = &op->segment_squares;
    const pl_plan_buffer *b = &plan->buffers[f->x];
    const int64_t pieces = (b->width + COLUMNS - 1) / COLUMNS, rows = pl_op_rows(plan, op);
    int64_t begin, end;
    while (PL_TAKE(f->counts.n * pieces, 1, 1)) {
        const int64_t s = begin / pieces, c0 = begin % pieces * COLUMNS, c1 = c0 + COLUMNS < b->width ? c0 + COLUMNS : b->width;
        const int32_t *ends = pl_int_row(plan, f->ends, 0);
        const int64_t first = s > 0 ? ends[s - 1] : 0, last = ends[s];
        double *sums = f->sums.values + s * b->width;
        if (first != last && row_ok(plan, first, rows) && row_ok(plan, last - 1, rows))
            for (int64_t row = first; row < last; row++)
                for (int64_t c = c0; c < c1; c++)
                    sums[c] += (double)pl_row(plan, f->x, row)[c] * (double)pl_row(plan, f->x, row)[c];
        if (c0 == 0)
            f->counts.values[s] += (double)(last - first);
        PL_DONE();
    }
    return f->counts.n * pieces;
}
