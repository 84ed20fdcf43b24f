/* Making a plan: ops checked and copied, buffers placed. */
#include "exec/plan.h"
#include "exec/residual_blocks.h"
#include "platform/os.h"
#include "types/blocks.h"
#include "types/matrix.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_WIDTH (1 << 24)
#define MAX_BUFFERS (1 << 20)
#define MAX_OPS (1 << 20)
#define MAX_TOKENS (1 << 16)

static int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

static int fail(pl_plan_error *error, int op, const char *message)
{
    error->op = op;
    snprintf(error->message, sizeof error->message, "%s", message);
    return 0;
}

/* ---- buffers ---- */

/* Rows that begin a multiple of 4 KB apart would crowd into the same cache sets: an odd number of cache lines lies between
 * them. In Q8 there is room for every block and a residual block, and the 48-byte blocks
 * of a row are an odd number, likewise. */
static pl_plan_buffer shape_of(const pl_buffer *b)
{
    pl_plan_buffer shape = {.kind = b->kind, .width = b->width, .rows = b->times};
    shape.padded = b->kind == PL_BUFFER_Q8 ? b->width / 32 : round_up(b->width, 32);
    shape.stride = b->kind == PL_BUFFER_Q8       ? 2 * shape.padded + 1
                   : b->kind == PL_BUFFER_FLOATS ? shape.padded + 16
                                                 : shape.padded;
    return shape;
}

static int64_t data_bytes(const pl_plan_buffer *b, int max_tokens)
{
    int64_t size = b->kind == PL_BUFFER_Q8 ? (int64_t)sizeof(pl_q8) : 4;
    return round_up(b->stride * b->rows * max_tokens * size, 64);
}

static int64_t residual_bytes(const pl_plan_buffer *b, int max_tokens)
{
    int64_t groups = (b->rows * max_tokens + PL_RESIDUAL_GROUP - 1) / PL_RESIDUAL_GROUP,
            chunks = (b->width + PL_CHUNK - 1) / PL_CHUNK;
    return b->kind == PL_BUFFER_Q8 ? groups * chunks * pl_residual_bytes(PL_RESIDUAL_GROUP) : 0;
}
static_assert(PL_SMALL_BATCH / PL_RESIDUAL_GROUP_SMALL * (PL_RESIDUAL_GROUP_SMALL + 2) <= PL_RESIDUAL_GROUP,
              "one group's room is enough for a few tokens' groups");

static int buffers_ok(const pl_buffer *buffers, int n_buffers, int max_tokens, pl_plan_error *error)
{
    if (n_buffers < 0 || n_buffers > MAX_BUFFERS || max_tokens < 1 || max_tokens > MAX_TOKENS)
        return fail(error, -1, "the number of buffers or of tokens is out of range");
    for (int i = 0; i < n_buffers; i++) {
        const pl_buffer *b = &buffers[i];
        if (b->kind < PL_BUFFER_FLOATS || b->kind > PL_BUFFER_INTS || b->width < 1 || b->width > MAX_WIDTH || b->times < 1 ||
            (int64_t)b->times * max_tokens > 1 << 24)
            return fail(error, -1, "a buffer has no such kind, width or number of rows");
        if (b->kind == PL_BUFFER_Q8 && (b->width % 32 || b->width / 32 > UINT16_MAX)) /* pl_q8.residual_offset */
            return fail(error, -1, "a buffer of 8-bit blocks is not as wide as whole blocks, or too wide");
    }
    return 1;
}

static int64_t arena_bytes(const pl_buffer *buffers, int n_buffers, int max_tokens)
{
    int64_t bytes = 0;
    for (int i = 0; i < n_buffers; i++) {
        pl_plan_buffer shape = shape_of(&buffers[i]);
        bytes += data_bytes(&shape, max_tokens) + residual_bytes(&shape, max_tokens);
    }
    return bytes;
}

/* Places the buffers in one arena: floats, then the others, then residual blocks. */
static int place_buffers(pl_plan *plan)
{
    plan->arena = pl_alloc((size_t)plan->arena_bytes + 64, 1);
    if (!plan->arena)
        return 0;
    uint8_t *at = plan->arena;
    for (int kind = PL_BUFFER_FLOATS; kind <= PL_BUFFER_INTS; kind++)
        for (int i = 0; i < plan->n_buffers; i++)
            if (plan->buffers[i].kind == kind) {
                plan->buffers[i].data = at;
                at += data_bytes(&plan->buffers[i], plan->max_tokens);
            }
    for (int i = 0; i < plan->n_buffers; i++) {
        plan->buffers[i].residual = at;
        at += residual_bytes(&plan->buffers[i], plan->max_tokens);
    }
    return 1;
}

/* ---- ops ---- */

/* Where the logits and hidden states of the batch get their widths, before ops are checked. */
static void find_outputs(pl_plan *plan, const pl_op *op)
{
    const pl_op_matmul *f = &op->matmul;
    if (op->head.kind == PL_OP_matmul && f->out[0] == PL_LOGITS && f->matrix[0])
        plan->logits_stride = f->matrix[0]->panels * PL_ROWS;
    int hidden = op->head.kind == PL_OP_copy && op->copy.out == PL_HIDDEN       ? op->copy.x
                 : op->head.kind == PL_OP_select && op->select.out == PL_HIDDEN ? op->select.x
                                                                                : PL_NONE;
    if (hidden >= 0 && hidden < plan->n_buffers)
        plan->hidden_stride = plan->buffers[hidden].padded;
}

/* What a checked op demands of batches. */
static void note_demands(pl_plan *plan, const pl_op *op)
{
    if (op->head.kind == PL_OP_embed) {
        plan->n_embeddable = op->embed.table.rows < plan->n_embeddable ? op->embed.table.rows : plan->n_embeddable;
        int64_t width = plan->buffers[op->embed.out].width;
        plan->embedding_width = width > plan->embedding_width ? width : plan->embedding_width;
    }
    const pl_matrices *stored = op->head.kind == PL_OP_request_experts  ? &op->request_experts.matrices
                                : op->head.kind == PL_OP_expect_experts ? &op->expect_experts.matrices
                                                                        : NULL;
    if (stored && !plan->experts) {
        plan->experts = pl_expert_memory_of(stored->items[0]->stored);
        pl_expert_memory_keep(plan->experts);
    }
    if (op->head.kind == PL_OP_adapter_embed && op->adapter_embed.table.rows < plan->n_embeddable)
        plan->n_embeddable = op->adapter_embed.table.rows;
    int32_t adapters = op->head.kind == PL_OP_adapter_embed                        ? op->adapter_embed.adapter + 1
                       : op->head.kind == PL_OP_adapter_down                       ? op->adapter_down.n_adapters
                       : op->head.kind == PL_OP_adapter_up                         ? op->adapter_up.n_adapters
                       : op->head.kind == PL_OP_adapter_experts_down               ? op->adapter_experts_down.adapter + 1
                       : op->head.kind == PL_OP_adapter_experts_up                 ? op->adapter_experts_up.adapter + 1
                       : op->head.kind == PL_OP_matmul && op->matmul.low_rank >= 0 ? op->matmul.n_adapters
                                                                                   : 0;
    plan->n_adapters = adapters > plan->n_adapters ? adapters : plan->n_adapters;
    if (op->head.kind == PL_OP_rope_store)
        plan->uses[op->rope_store.space].stored = 1;
    if (op->head.kind != PL_OP_attention)
        return;
    const pl_op_attention *f = &op->attention;
    pl_space_use *use = &plan->uses[f->space];
    if (!f->causal) {
        use->whole = 1;
        return;
    }
    use->causal = 1;
    use->all |= f->window == 0 && f->chunk == 0;
    use->window = f->window > use->window ? f->window : use->window;
    use->all |= f->chunk > 0 && use->chunk > 0 && f->chunk != use->chunk; /* one may begin before the other */
    use->chunk = f->window == 0 && f->chunk > 0 ? f->chunk : use->chunk;
}

/* Of a thread, at least `bytes`. */
static int64_t scratch_of(const pl_op *ops, int n_ops, const pl_plan_buffer *buffers, int n_buffers, int max_tokens,
                          int64_t bytes)
{
    for (int i = 0; i < n_ops; i++) {
        pl_op_scratch *scratch = pl_op_scratches[ops[i].head.kind];
        int64_t own = scratch ? scratch(&ops[i], buffers, n_buffers, max_tokens) : 0;
        bytes = own > bytes ? own : bytes;
    }
    return round_up(bytes, 64);
}

/* The list of matrices that an op has, if it is of such a kind. */
static pl_matrices *matrices_of(pl_op *op)
{
    int n;
    const pl_op_field *fields = pl_op_kinds[op->head.kind].fields(&n);
    for (int i = 0; i < n; i++)
        if (fields[i].type == PL_FIELD_MATRICES)
            return (pl_matrices *)(void *)((char *)op + fields[i].offset);
    return NULL;
}

/* Calls `visit` with every matrix that an op has, of a copy that may be changed. */
static void each_matrix(pl_op *op, void (*visit)(void *arg, const pl_matrix **matrix), void *arg)
{
    int n;
    const pl_op_field *fields = pl_op_kinds[op->head.kind].fields(&n);
    for (int i = 0; i < n; i++) {
        void *at = (char *)op + fields[i].offset;
        if (fields[i].type == PL_FIELD_MATRIX)
            for (int j = 0; j < fields[i].n; j++)
                if (((const pl_matrix **)at)[j])
                    visit(arg, (const pl_matrix **)at + j);
    }
    pl_matrices *list = matrices_of(op);
    for (int64_t j = 0; list && j < list->n; j++)
        if (list->items[j])
            visit(arg, (const pl_matrix **)(uintptr_t)list->items + j);
}

static void count_matrix(void *arg, const pl_matrix **matrix)
{
    (void)matrix;
    ++*(int64_t *)arg;
}

static void copy_matrix(void *arg, const pl_matrix **matrix)
{
    pl_plan *plan = arg;
    plan->matrices[plan->n_matrices] = **matrix;
    *matrix = &plan->matrices[plan->n_matrices++];
}

/* Late threads look at matrices while their owner may free them: the plan has copies. */
static int copy_matrices(pl_plan *plan)
{
    int64_t n = 0, n_listed = 0, listed = 0;
    for (int i = 0; i < plan->n_ops; i++) {
        const pl_matrices *list = matrices_of(&plan->ops[i]);
        n_listed += list ? list->n : 0;
        each_matrix(&plan->ops[i], count_matrix, &n);
    }
    plan->matrices = calloc((size_t)n + 1, sizeof *plan->matrices);
    plan->matrix_lists = calloc((size_t)n_listed + 1, sizeof *plan->matrix_lists);
    if (!plan->matrices || !plan->matrix_lists)
        return 0;
    for (int i = 0; i < plan->n_ops; i++) {
        pl_matrices *list = matrices_of(&plan->ops[i]);
        if (list && list->n) {
            memcpy(plan->matrix_lists + listed, list->items, sizeof *list->items * (size_t)list->n);
            list->items = plan->matrix_lists + listed;
            listed += list->n;
        }
        each_matrix(&plan->ops[i], copy_matrix, plan);
    }
    return 1;
}

/* ---- plans ---- */

static int has_weights(const pl_op *op)
{
    int n;
    const pl_op_field *fields = pl_op_kinds[op->head.kind].fields(&n);
    for (int i = 0; i < n; i++)
        if (fields[i].type >= PL_FIELD_MATRIX && fields[i].type <= PL_FIELD_SUMS)
            return 1;
    return 0;
}

/* Bytes of what `plan` would take, of which only shapes are given. */
static int64_t measure(pl_plan *plan, const pl_buffer *buffers, const pl_op *ops, int n_threads, pl_plan_error *error)
{
    for (int i = 0; i < plan->n_buffers; i++)
        plan->buffers[i] = shape_of(&buffers[i]);
    for (int i = 0; i < plan->n_ops; i++) {
        error->op = i;
        if (ops[i].head.kind < 0 || ops[i].head.kind >= PL_OP_COUNT)
            return fail(error, i, "there is no op of this kind") + PL_EINVAL;
        find_outputs(plan, &ops[i]);
        if (!has_weights(&ops[i]) && !pl_op_ok(plan, &ops[i], error))
            return PL_EINVAL;
    }
    int64_t parts = pl_attention_measure(&plan->attention, plan->spaces, plan->n_spaces, ops, plan->n_ops, plan->n_ctx);
    if (parts < 0)
        return fail(error, -1, "out of memory") + parts;
    return arena_bytes(buffers, plan->n_buffers, plan->max_tokens) + parts +
           scratch_of(ops, plan->n_ops, plan->buffers, plan->n_buffers, plan->max_tokens, plan->attention.scratch_bytes) *
               n_threads;
}

static int sizes_ok(int n_spaces, int n_ops, int n_ctx, pl_plan_error *error)
{
    return (n_ops >= 0 && n_ops <= MAX_OPS && n_spaces >= 0 && n_spaces <= MAX_BUFFERS && n_ctx >= 1) ||
           fail(error, -1, "the number of ops, of spaces or of positions is out of range");
}

int64_t pl_plan_measure(const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops, const pl_buffer *buffers,
                        int n_buffers, int max_tokens, int n_ctx, int n_threads, pl_plan_error *error)
{
    if (!sizes_ok(n_spaces, n_ops, n_ctx, error) || !buffers_ok(buffers, n_buffers, max_tokens, error))
        return PL_EINVAL;
    pl_plan plan = {.spaces = spaces,
                    .n_spaces = n_spaces,
                    .n_buffers = n_buffers,
                    .n_ops = n_ops,
                    .max_tokens = max_tokens,
                    .n_ctx = n_ctx,
                    .buffers = calloc((size_t)n_buffers + 1, sizeof *plan.buffers)};
    int64_t bytes = plan.buffers ? measure(&plan, buffers, ops, n_threads, error) : fail(error, -1, "out of memory") + PL_ENOMEM;
    free(plan.buffers);
    pl_attention_free(&plan.attention);
    return bytes;
}

static size_t done_bytes(const pl_plan *plan)
{
    return sizeof *plan->done * ((size_t)plan->n_ops + 1) * (size_t)plan->done_lines;
}

static int allocate(pl_plan *plan)
{
    plan->ops = calloc((size_t)plan->n_ops + 1, sizeof *plan->ops);
    plan->buffers = calloc((size_t)plan->n_buffers + 1, sizeof *plan->buffers);
    plan->spaces = plan->space_list = calloc((size_t)plan->n_spaces + 1, sizeof *plan->space_list);
    plan->space_copies = calloc((size_t)plan->n_spaces + 1, sizeof *plan->space_copies);
    plan->uses = calloc((size_t)plan->n_spaces + 1, sizeof *plan->uses);
    plan->seen = calloc((size_t)plan->max_tokens, sizeof *plan->seen);
    plan->done = pl_alloc(done_bytes(plan), 1);
    plan->cursors = pl_alloc(sizeof *plan->cursors * (size_t)pl_pool_threads(plan->pool), 0);
    return plan->ops && plan->buffers && plan->spaces && plan->space_copies && plan->uses && plan->seen && plan->done &&
           plan->cursors;
}

static int ops_ok(pl_plan *plan, pl_plan_error *error)
{
    for (int i = 0; i < plan->n_ops; i++)
        find_outputs(plan, &plan->ops[i]);
    for (int i = 0; i < plan->n_ops; i++) {
        error->op = i;
        if (!pl_op_ok(plan, &plan->ops[i], error))
            return 0;
        note_demands(plan, &plan->ops[i]);
    }
    return 1;
}

/* Everything that the plan needs besides its ops. */
static int make_room(pl_plan *plan, const pl_buffer *buffers)
{
    int threads = pl_pool_threads(plan->pool);
    int64_t parts = pl_attention_measure(&plan->attention, plan->spaces, plan->n_spaces, plan->ops, plan->n_ops, plan->n_ctx);
    if (parts < 0 || pl_attention_init(plan) != PL_OK)
        return 0;
    plan->arena_bytes = arena_bytes(buffers, plan->n_buffers, plan->max_tokens);
    plan->scratch_bytes =
        scratch_of(plan->ops, plan->n_ops, plan->buffers, plan->n_buffers, plan->max_tokens, plan->attention.scratch_bytes);
    plan->scratch = pl_alloc((size_t)(plan->scratch_bytes * threads) + 64, 0);
    plan->bytes = plan->arena_bytes + parts + plan->scratch_bytes * threads;
    return plan->scratch && place_buffers(plan) && copy_matrices(plan);
}

static pl_plan *free_with(pl_plan *plan, pl_plan_error *error, const char *message)
{
    if (message)
        fail(error, -1, message);
    pl_plan_free(plan);
    return NULL;
}

pl_plan *pl_plan_new(pl_pool *pool, const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops,
                     const pl_buffer *buffers, int n_buffers, int max_tokens, int n_ctx, pl_plan_error *error)
{
    if (!sizes_ok(n_spaces, n_ops, n_ctx, error) || !buffers_ok(buffers, n_buffers, max_tokens, error))
        return NULL;
    pl_plan *plan = calloc(1, sizeof *plan);
    if (!plan)
        return free_with(NULL, error, "out of memory");
    *plan = (pl_plan){.pool = pool,
                      .kernels = pl_kernels_current(),
                      .n_spaces = n_spaces,
                      .n_buffers = n_buffers,
                      .n_ops = n_ops,
                      .max_tokens = max_tokens,
                      .dominant = PL_Q8_DOMINANT,
                      .n_ctx = n_ctx,
                      .n_embeddable = INT32_MAX,
                      .done_lines = pl_done_lines(pl_pool_threads(pool)),
                      .job = {pl_plan_run_thread, plan}};
    pl_pool_keep(pool);
    if (!allocate(plan))
        return free_with(plan, error, "out of memory");
    if (n_ops > 0)
        memcpy(plan->ops, ops, sizeof *ops * (size_t)n_ops);
    for (int i = 0; i < n_spaces; i++) {
        plan->space_copies[i] = *spaces[i];
        plan->space_list[i] = &plan->space_copies[i];
    }
    for (int i = 0; i < n_buffers; i++)
        plan->buffers[i] = shape_of(&buffers[i]);
    if (!ops_ok(plan, error))
        return free_with(plan, error, NULL);
    if (!make_room(plan, buffers))
        return free_with(plan, error, "out of memory");
    return plan;
}

void pl_plan_set_exact(pl_plan *plan, int exact) { plan->dominant = exact ? 0 : PL_Q8_DOMINANT; }

void pl_plan_free(pl_plan *plan)
{
    if (!plan)
        return;
    pl_pool_wait_idle(plan->pool);
    pl_attention_free(&plan->attention);
    pl_release(plan->arena, (size_t)plan->arena_bytes + 64);
    pl_release(plan->scratch, (size_t)(plan->scratch_bytes * pl_pool_threads(plan->pool)) + 64);
    pl_release(plan->done, done_bytes(plan));
    pl_release(plan->cursors, sizeof *plan->cursors * (size_t)pl_pool_threads(plan->pool));
    pl_pool_free(plan->pool);
    pl_expert_memory_free(plan->experts);
    free(plan->matrices);
    free(plan->matrix_lists);
    free(plan->ops);
    free(plan->buffers);
    free(plan->space_list);
    free(plan->space_copies);
    free(plan->uses);
    free(plan->seen);
    free(plan);
}

int64_t pl_plan_bytes(const pl_plan *plan) { return plan->bytes; }
int64_t pl_plan_logits_stride(const pl_plan *plan) { return plan->logits_stride; }
int64_t pl_plan_hidden_stride(const pl_plan *plan) { return plan->hidden_stride; }
