/* Norms and functions of single elements. Kernels of the tier where a plan of a Llama spends time on them; the others are
 * plain C, the same on every tier. */
#include "exec/plan.h"
#include <math.h>
#include <string.h>

static int64_t width_of(const pl_plan *plan, int buffer) { return plan->buffers[buffer].width; }

/* Of ops that make `out` from x, and maybe q8 from that. */
static const char *check_like(const pl_plan *plan, int x, int out, int q8)
{
    if (width_of(plan, x) != width_of(plan, out))
        return "x and out have different widths";
    return q8 < 0 || width_of(plan, q8) == width_of(plan, out) ? NULL : "q8 is not as wide as out";
}

/* ---- norms: an item is a row ---- */

typedef void norm_row(const pl_plan *plan, const pl_op *op, const float *x, float *out);

static int64_t run_norm(pl_plan *plan, const pl_op *op, pl_work_queue *queue, int x, int out, int q8, norm_row *norm)
{
    int64_t begin, end, n = pl_op_rows(plan, op);
    while (PL_TAKE(n, 1, n > 64 ? 8 : 1)) {
        for (int64_t i = begin; i < end; i++) {
            float *y = pl_row(plan, out, i);
            norm(plan, op, pl_row(plan, x, i), y);
            if (q8 >= 0)
                pl_quantize_blocks(plan, q8, y, 0, plan->buffers[q8].padded, i);
        }
        PL_DONE();
    }
    return n;
}

static void rms_norm(const pl_plan *plan, const pl_op *op, const float *x, float *out)
{
    plan->kernels->rms_norm(x, op->rms_norm.weight.values, op->rms_norm.eps, op->rms_norm.weight.n, out);
}

const char *check_rms_norm(const pl_plan *plan, const pl_op *op)
{
    const pl_op_rms_norm *f = &op->rms_norm;
    if (f->weight.n != width_of(plan, f->x))
        return "the weight is not as wide as x";
    return f->eps < 0 ? "eps is negative" : check_like(plan, f->x, f->out, f->q8);
}

int64_t run_rms_norm(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_norm(plan, op, queue, op->rms_norm.x, op->rms_norm.out, op->rms_norm.q8, rms_norm);
}

static void layer_norm(const pl_plan *plan, const pl_op *op, const float *x, float *out)
{
    const pl_op_layer_norm *f = &op->layer_norm;
    plan->kernels->layer_norm(x, f->weight.values, f->bias.n ? f->bias.values : NULL, f->eps, f->weight.n, out);
}

const char *check_layer_norm(const pl_plan *plan, const pl_op *op)
{
    const pl_op_layer_norm *f = &op->layer_norm;
    if (f->weight.n != width_of(plan, f->x) || (f->bias.n && f->bias.n != f->weight.n))
        return "the weight or the bias is not as wide as x";
    return f->eps < 0 ? "eps is negative" : check_like(plan, f->x, f->out, f->q8);
}

int64_t run_layer_norm(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_norm(plan, op, queue, op->layer_norm.x, op->layer_norm.out, op->layer_norm.q8, layer_norm);
}

/* The padding of a row, which later ops may read. */
static void clear_padding(const pl_plan *plan, int buffer, float *row)
{
    const pl_plan_buffer *b = &plan->buffers[buffer];
    memset(row + b->width, 0, sizeof(float) * (size_t)(b->padded - b->width));
}

static void l2_norm(const pl_plan *plan, const pl_op *op, const float *x, float *out)
{
    const pl_op_l2_norm *f = &op->l2_norm;
    for (int64_t begin = 0; begin < width_of(plan, f->x); begin += f->size) {
        double squares = 0;
        for (int64_t i = begin; i < begin + f->size; i++)
            squares += (double)x[i] * (double)x[i];
        const float scale = (float)(1.0 / sqrt((f->mean ? squares / f->size : squares) + (double)f->eps));
        for (int64_t i = begin; i < begin + f->size; i++)
            out[i] = f->weight.n ? x[i] * scale * f->weight.values[i - begin] : x[i] * scale;
    }
    clear_padding(plan, f->out, out);
}

const char *check_l2_norm(const pl_plan *plan, const pl_op *op)
{
    const pl_op_l2_norm *f = &op->l2_norm;
    if (f->size < 1 || width_of(plan, f->x) % f->size)
        return "x is not whole runs of `size`";
    if (f->weight.n && f->weight.n != f->size)
        return "the weight is not as wide as a run";
    return f->eps < 0 ? "eps is negative" : check_like(plan, f->x, f->out, PL_NONE);
}

int64_t run_l2_norm(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_norm(plan, op, queue, op->l2_norm.x, op->l2_norm.out, PL_NONE, l2_norm);
}

static void softmax(const pl_plan *plan, const pl_op *op, const float *x, float *out)
{
    const int64_t n = width_of(plan, op->softmax.x);
    double top = (double)x[0], sum = 0;
    for (int64_t i = 1; i < n; i++)
        top = (double)x[i] > top ? (double)x[i] : top;
    for (int64_t i = 0; i < n; i++)
        sum += exp((double)x[i] - top);
    for (int64_t i = 0; i < n; i++)
        out[i] = (float)(exp((double)x[i] - top) / sum);
    clear_padding(plan, op->softmax.out, out);
}

const char *check_softmax(const pl_plan *plan, const pl_op *op) { return check_like(plan, op->softmax.x, op->softmax.out, PL_NONE); }

int64_t run_softmax(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_norm(plan, op, queue, op->softmax.x, op->softmax.out, PL_NONE, softmax);
}

/* ---- elements: a row is cut into pieces of 256 columns, so that all threads share a single token's row; of many rows a
 * thread takes whole ones, since what two threads write side by side costs both ---- */

#define PIECE 256
#define TAKE_PIECES(n, pieces) PL_TAKE((n) * (pieces), pl_unit(n, pieces), (n) > PL_SHARED ? (pieces) : 2)

/* out[c] of columns c0 … c1 - 1 of row i, with the padding. */
typedef void piece_of_row(const pl_plan *plan, const pl_op *op, int64_t i, int64_t c0, int64_t c1, float *out);

static int64_t run_pieces(pl_plan *plan, const pl_op *op, pl_work_queue *queue, int out, int q8, piece_of_row *piece)
{
    int64_t n = pl_op_rows(plan, op), width = plan->buffers[out].padded, pieces = (width + PIECE - 1) / PIECE, begin, end;
    while (TAKE_PIECES(n, pieces)) {
        for (int64_t item = begin; item < end; item++) {
            int64_t i = item / pieces, c0 = item % pieces * PIECE, c1 = c0 + PIECE < width ? c0 + PIECE : width;
            float *y = pl_row(plan, out, i);
            piece(plan, op, i, c0, c1, y);
            if (q8 >= 0) {
                int64_t b1 = (c1 + 31) / 32, blocks = plan->buffers[q8].padded;
                pl_quantize_blocks(plan, q8, y, c0 / 32, b1 < blocks ? b1 : blocks, i);
            }
        }
        PL_DONE();
    }
    return n * pieces;
}

static void silu_mul(const pl_plan *plan, const pl_op *op, int64_t i, int64_t c0, int64_t c1, float *y)
{
    plan->kernels->silu_mul(pl_row(plan, op->silu_mul.gate, i) + c0, pl_row(plan, op->silu_mul.up, i) + c0, y + c0, c1 - c0);
}

const char *check_silu_mul(const pl_plan *plan, const pl_op *op)
{
    const pl_op_silu_mul *f = &op->silu_mul;
    const char *reason = check_like(plan, f->up, f->out, f->q8);
    return reason ? reason : check_like(plan, f->gate, f->out, PL_NONE);
}

int64_t run_silu_mul(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_pieces(plan, op, queue, op->silu_mul.out, op->silu_mul.q8, silu_mul);
}

static void gelu(const pl_plan *plan, const pl_op *op, int64_t i, int64_t c0, int64_t c1, float *y)
{
    plan->kernels->gelu(pl_row(plan, op->gelu.x, i) + c0, op->gelu.tanh, y + c0, c1 - c0);
}

const char *check_gelu(const pl_plan *plan, const pl_op *op) { return check_like(plan, op->gelu.x, op->gelu.out, op->gelu.q8); }

int64_t run_gelu(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_pieces(plan, op, queue, op->gelu.out, op->gelu.q8, gelu);
}

static void sigmoid(const pl_plan *plan, const pl_op *op, int64_t i, int64_t c0, int64_t c1, float *y)
{
    const float *x = pl_row(plan, op->sigmoid.x, i);
    for (int64_t c = c0; c < c1; c++)
        y[c] = (float)(1.0 / (1.0 + exp(-(double)x[c])));
}

const char *check_sigmoid(const pl_plan *plan, const pl_op *op)
{
    return check_like(plan, op->sigmoid.x, op->sigmoid.out, PL_NONE);
}

int64_t run_sigmoid(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_pieces(plan, op, queue, op->sigmoid.out, PL_NONE, sigmoid);
}

int64_t run_quantize(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_quantize *f = &op->quantize;
    int64_t n = pl_op_rows(plan, op), blocks = plan->buffers[f->q8].padded, pieces = (blocks * 32 + PIECE - 1) / PIECE, begin,
            end;
    while (TAKE_PIECES(n, pieces)) {
        for (int64_t item = begin, next; item < end; item = next) { /* what lies in one row at once */
            const int64_t i = item / pieces, first = i * pieces;
            next = first + pieces < end ? first + pieces : end;
            const int64_t b0 = (item - first) * (PIECE / 32), b1 = (next - first) * (PIECE / 32);
            pl_quantize_blocks(plan, f->q8, pl_row(plan, f->x, i), b0, b1 < blocks ? b1 : blocks, i);
        }
        PL_DONE();
    }
    return n * pieces;
}

const char *check_quantize(const pl_plan *plan, const pl_op *op)
{
    return width_of(plan, op->quantize.x) == width_of(plan, op->quantize.q8) ? NULL : "q8 is not as wide as x";
}

int64_t run_add(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    const pl_op_add *f = &op->add;
    int64_t n = pl_op_rows(plan, op), begin, end;
    while (PL_TAKE(n, 1, 1)) {
        plan->kernels->add(pl_row(plan, f->a, begin), pl_row(plan, f->b, begin), pl_row(plan, f->out, begin),
                           plan->buffers[f->out].padded);
        PL_DONE();
    }
    return n;
}

const char *check_add(const pl_plan *plan, const pl_op *op)
{
    const char *reason = check_like(plan, op->add.a, op->add.out, PL_NONE);
    return reason ? reason : check_like(plan, op->add.b, op->add.out, PL_NONE);
}

static void scale(const pl_plan *plan, const pl_op *op, int64_t i, int64_t c0, int64_t c1, float *y)
{
    const float *x = pl_row(plan, op->scale.x, i);
    for (int64_t c = c0; c < c1; c++)
        y[c] = x[c] * op->scale.factor;
}

const char *check_scale(const pl_plan *plan, const pl_op *op) { return check_like(plan, op->scale.x, op->scale.out, PL_NONE); }

int64_t run_scale(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_pieces(plan, op, queue, op->scale.out, PL_NONE, scale);
}

static void scale_by_position(const pl_plan *plan, const pl_op *op, int64_t i, int64_t c0, int64_t c1, float *y)
{
    const pl_op_scale_by_position *f = &op->scale_by_position;
    const float *x = pl_row(plan, f->x, i);
    const double spans = floor(((double)plan->batch.positions[i] + 1.0) / (double)f->span);
    const float factor = (float)(1.0 + (double)f->slope * log1p(spans));
    for (int64_t c = c0; c < c1; c++)
        y[c] = x[c] * factor;
}

const char *check_scale_by_position(const pl_plan *plan, const pl_op *op)
{
    const pl_op_scale_by_position *f = &op->scale_by_position;
    return f->span >= 1 ? check_like(plan, f->x, f->out, PL_NONE) : "span is less than 1";
}

int64_t run_scale_by_position(pl_plan *plan, const pl_op *op, pl_work_queue *queue)
{
    return run_pieces(plan, op, queue, op->scale_by_position.out, PL_NONE, scale_by_position);
}
