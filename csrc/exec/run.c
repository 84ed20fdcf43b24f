/* The executor: one call runs every op of the plan on all threads.
 *
 * An op is a number of work items that threads take (work_queue.h); the next op starts when all items are done. Nobody
 * waits for a thread that has not taken one: on a machine shared with other programs a thread that the system has put
 * aside costs nothing until it comes back. With a barrier of all threads, decoding beside busy programs fell far below the
 * speed of one thread alone. */
#include "exec/plan.h"
#include "platform/os.h"

#define INTERRUPT_SECONDS 0.05

/* ---- is the batch one that the plan can run? ---- */

static int aligned64(const void *p) { return (uintptr_t)p % 64 == 0; }

static int counts_ok(const pl_plan *plan, const pl_batch *b)
{
    return b->n_tokens >= 1 && b->n_tokens <= plan->max_tokens && b->n_outputs >= 0 && b->n_outputs <= b->n_tokens &&
           b->n_logits >= 0 && b->n_logits <= b->n_outputs && b->n_sequences >= 1 && b->n_sequences <= b->n_tokens &&
           b->n_embeddings >= 0 && b->tokens && b->positions && b->sequences && (b->outputs || b->n_outputs == 0) &&
           (b->n_embeddings == 0 || (b->embeddings && b->embedding_stride >= plan->embedding_width)) && aligned64(b->logits) &&
           aligned64(b->hidden) && b->first_op >= 0 && b->end_op >= 0 && b->end_op <= plan->n_ops && b->first_op <= plan->n_ops &&
           (!b->adapter_scales || b->n_adapters >= plan->n_adapters);
}

static int outputs_ok(const pl_batch *b)
{
    for (int i = 0; i < b->n_outputs; i++)
        if (b->outputs[i] < 0 || b->outputs[i] >= b->n_tokens)
            return 0;
    return 1;
}

static int token_ok(const pl_plan *plan, const pl_batch *b, int t)
{
    int64_t token = b->tokens[t];
    return token < 0 ? -1 - token < b->n_embeddings : token < plan->n_embeddable;
}

/* Tokens of a sequence stand together, and each sequence has some. */
static int tokens_ok(pl_plan *plan, const pl_batch *b)
{
    const uint64_t run = ++plan->n_checked;
    int n_sequences = 0;
    for (int t = 0; t < b->n_tokens; t++) {
        int32_t s = b->sequences[t];
        if (s < 0 || s >= b->n_sequences || b->positions[t] < 0 || b->positions[t] >= plan->n_ctx || !token_ok(plan, b, t))
            return 0;
        if (t > 0 && s == b->sequences[t - 1]) {
            if (b->positions[t] != b->positions[t - 1] + 1)
                return 0;
            continue;
        }
        if (plan->seen[s] == run)
            return 0;
        plan->seen[s] = run;
        n_sequences++;
    }
    return n_sequences == b->n_sequences;
}

/* The first key of a space that a token at `position` may see. */
static int64_t first_read(const pl_space_use *use, int64_t position)
{
    int64_t first = use->all ? 0 : position;
    if (!use->all && use->window > 0 && position - use->window + 1 < first)
        first = position - use->window + 1 > 0 ? position - use->window + 1 : 0;
    if (!use->all && use->chunk > 0 && position - position % use->chunk < first)
        first = position - position % use->chunk;
    return first;
}

static int pages_present(const uintptr_t *table, int64_t first, int64_t end)
{
    for (int64_t page = first / PL_PAGE_POSITIONS; page < (end + PL_PAGE_POSITIONS - 1) / PL_PAGE_POSITIONS; page++)
        if (!table || !table[page])
            return 0;
    return 1;
}

/* The pages of a space that hold what is read and written of the sequence whose tokens are [t, end). */
static int space_ok(const pl_plan *plan, const pl_batch *b, int space, int t, int end)
{
    const pl_space_use *use = &plan->uses[space];
    const int32_t sequence = b->sequences[t];
    const uintptr_t *table = b->pages[space] ? b->pages[space][sequence] : NULL;
    if (use->stored || use->causal)
        if (!pages_present(table, use->causal ? first_read(use, b->positions[t]) : b->positions[t], b->positions[end - 1] + 1))
            return 0;
    if (!use->whole)
        return 1;
    int64_t keys = b->lengths && b->lengths[space] ? b->lengths[space][sequence] : b->positions[end - 1] + 1;
    return keys >= 0 && pages_present(table, 0, keys);
}

static int pages_ok(const pl_plan *plan, const pl_batch *b)
{
    if (plan->n_spaces > 0 && !b->pages)
        return 0;
    for (int t = 0, end; t < b->n_tokens; t = end) {
        for (end = t + 1; end < b->n_tokens && b->sequences[end] == b->sequences[t];)
            end++;
        for (int space = 0; space < plan->n_spaces; space++)
            if (!space_ok(plan, b, space, t, end))
                return 0;
    }
    return 1;
}

/* ---- the run ---- */

/* What the end of an op is known by. */
typedef struct {
    const pl_plan *plan;
    pl_items_done *done;
    int64_t items;
    uint64_t round;
} op_end;

static int is_counted(const op_end *end)
{
    return pl_items_counted(end->done, pl_done_lines(end->plan->division->threads)) >= end->items;
}

static int run_is_over(const op_end *end) { return atomic_load_explicit(&end->plan->round, memory_order_relaxed) != end->round; }

static int op_over(const void *end) { return is_counted(end) || run_is_over(end); }

/* Waits until all items of an op are done -> 0 when the run is over or to be left. */
static int op_finished(pl_plan *plan, const op_end *end)
{
    if (!is_counted(end)) {
        pl_pool_wait(plan->pool, op_over, end);
        if (!is_counted(end))
            return 0;
    } else if (pl_pool_awaited(plan->pool))
        pl_pool_notify(plan->pool);
    return !atomic_load_explicit(&plan->stop, memory_order_relaxed);
}

/* Ops are numbered over all runs. */
static uint64_t epoch_of(const pl_plan *plan, uint64_t round) { return round * ((uint64_t)plan->n_ops + 1); }

static int step_kind_of(const pl_batch *b) { return b->n_tokens <= PL_SMALL_BATCH ? PL_FEW_TOKENS : PL_MANY_TOKENS; }

/* How the work of a batch is divided. Late threads look at what the last run had: before anything of it changes. */
static const pl_division *division_of(pl_plan *plan, const pl_batch *batch)
{
    const int threads = pl_pool_prepare(plan->pool), kind = step_kind_of(batch);
    const pl_division *now = pl_placement_divide(pl_pool_placement(plan->pool), threads, kind);
    if (plan->divisions[kind].version != now->version) {
        pl_pool_wait_idle(plan->pool);
        plan->divisions[kind] = *now;
    }
    return &plan->divisions[kind];
}

void pl_plan_run_thread(void *arg, int thread)
{
    pl_plan *plan = arg;
    uint64_t round = atomic_load_explicit(&plan->round, memory_order_acquire);
    double checked = thread == 0 ? pl_seconds() : 0, before = checked;
    const pl_division *division = plan->division;
    const int end = plan->batch.end_op ? plan->batch.end_op : plan->n_ops;
    for (int i = plan->batch.first_op; i < end; i++) {
        pl_items_done *done = plan->done + (int64_t)i * plan->done_lines;
        pl_work_queue queue = {
            .cursors = plan->cursors, .epoch = epoch_of(plan, round) + 1 + (uint64_t)i, .thread = thread, .division = division};
        int64_t items = pl_op_kinds[plan->ops[i].head.kind].run(plan, &plan->ops[i], &queue);
        pl_queue_report(&queue, done);
        if (queue.is_product)
            pl_placement_worked(pl_pool_placement(plan->pool), thread, step_kind_of(&plan->batch), queue.finished);
        if (thread == 0 && plan->interrupt && pl_seconds() - checked > INTERRUPT_SECONDS) {
            if (plan->interrupt())
                atomic_store(&plan->stop, 1);
            checked = pl_seconds();
        }
        if (!op_finished(plan, &(op_end){plan, done, items, round}))
            return;
        if (thread == 0 && plan->profile) {
            double now = pl_seconds();
            plan->profile[i] += now - before;
            before = now;
        }
    }
}

int pl_plan_run(pl_plan *plan, const pl_batch *batch, int (*interrupt)(void))
{
    if (!counts_ok(plan, batch) || !outputs_ok(batch) || !tokens_ok(plan, batch) || !pages_ok(plan, batch))
        return PL_EINVAL;
    uint64_t round = atomic_load(&plan->round) + 1;
    const pl_division *division = division_of(plan, batch);
    for (int i = 0; i < pl_pool_threads(plan->pool); i++) /* before anything changes: late threads are shut out */
        pl_cursor_close(&plan->cursors[i], epoch_of(plan, round));
    plan->batch = *batch;
    plan->division = division;
    plan->interrupt = interrupt;
    atomic_store(&plan->stop, 0);
    atomic_store(&plan->failed, PL_OK);
    pl_attention_prepare(plan);
    for (int i = 0; i < plan->n_ops * plan->done_lines; i++)
        atomic_store_explicit(&plan->done[i].count, 0, memory_order_relaxed);
    atomic_store(&plan->round, round); /* now that all is ready: a thread may be waiting to enter */
    if (pl_pool_awaited(plan->pool))   /* late threads that wait for the end of an op of the last run */
        pl_pool_notify(plan->pool);
    pl_pool_start(plan->pool, &plan->job);
    if (!atomic_load(&plan->stop))
        return atomic_load(&plan->failed);
    pl_pool_wait_idle(plan->pool); /* others may be inside an op that this thread left */
    return PL_EINTERRUPTED;
}

void pl_plan_profile(pl_plan *plan, double *seconds) { plan->profile = seconds; }
