#include "exec/op_cost.h"
#include "exec/plan.h"
#include "types/matrix.h"
#include "types/panel.h"
#include <string.h>

static double rows_of(const pl_op *op, const pl_workload *w)
{
    double tokens = (double)w->n_sequences * w->n_tokens;
    double rows = op->head.rows == PL_ROWS_TOKENS ? tokens : op->head.rows == PL_ROWS_OUTPUTS ? w->n_outputs : w->n_logits;
    return rows * op->head.times;
}

/* The columns of `out`, or of the op's first buffer. */
static double width_of(const pl_plan *plan, const pl_op *op)
{
    int n;
    int32_t first = PL_NONE, out = PL_NONE;
    const pl_op_field *fields = pl_op_kinds[op->head.kind].fields(&n);
    for (int i = 0; i < n; i++) {
        int32_t number =
            fields[i].type < PL_FIELD_IN ? PL_NONE : *(const int32_t *)(const void *)((const char *)op + fields[i].offset);
        first = first == PL_NONE ? number : first;
        out = strcmp(fields[i].name, "out") == 0 ? number : out;
    }
    out = out >= 0 ? out : first;
    return out >= 0 ? (double)plan->buffers[out].width : 0;
}

void cost_lookup(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    (void)plan;
    cost->read += rows_of(op, w) * (double)op->embed.table.row_bytes;
}

void cost_elements(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    cost->fp32 += rows_of(op, w) * width_of(plan, op) * (double)pl_op_kinds[op->head.kind].amount;
}

static void add_codes(int bits, double ops, pl_cost *cost)
{
    cost->int8 += ops;
    cost->codes[bits == 16 ? 5 : bits - 4] += ops;
}

static void add_product(const pl_matrix *m, double rows, double times_read, pl_cost *cost)
{
    double ops = 2.0 * (double)m->rows * (double)m->cols * rows;
    cost->read += rows > 0 ? times_read * (double)pl_matrix_bytes(m) : 0;
    if (pl_panel_is_float(m->type))
        cost->fp32 += ops;
    else
        add_codes(pl_code_bits(m->type), ops, cost);
}

static void add_listed(const pl_matrices *list, double rows, pl_cost *cost)
{
    for (int64_t i = 0; i < list->n; i++)
        if (list->items[i])
            add_product(list->items[i], rows, 1, cost);
}

void cost_products(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    (void)plan;
    add_listed(&op->matmul.up, rows_of(op, w), cost);
    for (int i = 0; i < 3; i++)
        if (op->matmul.matrix[i])
            add_product(op->matmul.matrix[i], rows_of(op, w), 1, cost);
}

/* Rows may all go to different matrices; more than there are cannot be read. */
void cost_segments(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    (void)plan;
    double rows = rows_of(op, w), n = (double)op->segment_matmul.matrices.n;
    add_product(op->segment_matmul.matrices.items[0], rows, rows < n ? rows : n, cost);
}

void cost_low_rank(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    (void)plan;
    const int kind = op->head.kind;
    if (kind == PL_OP_adapter_experts_down || kind == PL_OP_adapter_experts_up)
        add_product(kind == PL_OP_adapter_experts_down ? op->adapter_experts_down.matrices.items[0]
                                                       : op->adapter_experts_up.matrices.items[0],
                    rows_of(op, w), 1, cost);
    else
        add_listed(kind == PL_OP_adapter_down ? &op->adapter_down.matrices : &op->adapter_up.matrices, rows_of(op, w), cost);
}

/* (query, key) pairs of the tokens after `depth`, each seeing up to `window` keys, or those of its chunk. */
static double pairs_of(const pl_op_attention *f, const pl_workload *w)
{
    double pairs = 0;
    for (int i = 0; i < w->n_tokens; i++) {
        int64_t position = (int64_t)w->depth + i, seen = f->causal ? position + 1 : (int64_t)w->depth + w->n_tokens;
        if (f->window > 0 && seen > f->window)
            seen = f->window;
        if (f->chunk > 0 && seen > position % f->chunk + 1)
            seen = position % f->chunk + 1;
        pairs += (double)seen;
    }
    return pairs;
}

/* `ops` operations for each dim of a key or value, in the units that the tier multiplies them in. */
static void add_tiles(const pl_kv_tile *tile, double ops, pl_cost *cost)
{
    const pl_kernels *kernels = pl_kernels_current();
    ops *= tile->head_dim;
    if (kernels && kernels->kv_whole(tile->type))
        add_codes(16, ops, cost);
    else
        cost->fp32 += ops;
}

void cost_keys(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    const pl_op_attention *f = &op->attention;
    const pl_cache *c = plan->spaces[f->space];
    double key_bytes = (double)c->page_bytes / PL_PAGE_POSITIONS / c->n_layers, before = w->depth;
    if (f->window > 0 && before > f->window)
        before = f->window;
    if (f->chunk > 0 && before > w->depth % f->chunk)
        before = w->depth % f->chunk;
    cost->read += (before + w->n_tokens) * key_bytes * w->n_sequences;
    const double ops = pairs_of(f, w) * w->n_sequences * 2.0 * f->n_heads;
    add_tiles(&c->k, ops, cost);
    add_tiles(&c->v, ops, cost);
}

void cost_tokens(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    const pl_op_self_attention *f = &op->self_attention;
    double pairs = (double)w->n_tokens * w->n_tokens * w->n_sequences;
    cost->fp32 += pairs * 2.0 * (double)(plan->buffers[f->q].width + plan->buffers[f->out].width);
}

/* Scores of content and values for each pair of tokens, and each token's products with all positions. */
void cost_relative(const pl_plan *plan, const pl_op *op, const pl_workload *w, pl_cost *cost)
{
    const pl_op_disentangled_attention *f = &op->disentangled_attention;
    double tokens = (double)w->n_tokens * w->n_sequences, k_width = (double)plan->buffers[f->k].width;
    cost->fp32 += tokens * w->n_tokens * 2.0 * (k_width + (double)plan->buffers[f->v].width);
    cost->fp32 += tokens * f->n_positions * 4.0 * k_width;
}

int pl_plan_cost(const pl_plan *plan, int op, const pl_workload *work, pl_cost *cost)
{
    *cost = (pl_cost){0};
    if (op < 0 || op >= plan->n_ops || work->n_sequences < 1 || work->n_tokens < 0 || work->depth < 0)
        return PL_EINVAL;
    pl_op_kinds[plan->ops[op].head.kind].cost(plan, &plan->ops[op], work, cost);
    return PL_OK;
}
