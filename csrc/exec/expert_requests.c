/* What a step needs of an expert memory: the requests of a layer, what is read ahead of the next one's, and the products' side. */
#include "exec/expert_state.h"
#include "types/matrix.h"

#define GUESS_WORTH 0.6  /* share of the guesses that must come true for them to be read */
#define GUESS_WEIGHT 0.1 /* of the newest one in that share */

static void stop_reading(struct pl_stored_matrix *x)
{
    if (x->state == FAILED)
        x->state = ABSENT;
    if (x->state != LOADING)
        return;
    x->wanted = 0;
    x->next_part = x->n_parts;
    if (x->in_flight == 0)
        pl_slot_leave(x, ABSENT);
}

/* What is left of earlier requests (of a step that was interrupted, or failed) is not waited for. */
static void drop_requests(pl_expert_memory *m)
{
    for (int64_t i = 0; i < m->n_requests; i++) {
        struct pl_stored_matrix *x = m->requests[i];
        x->pinned = 0;
        atomic_store(&x->uses, 0);
        atomic_store(&x->panels_at, NULL);
        stop_reading(x);
    }
    m->n_requests = m->n_granted = m->next_read = 0;
}

/* What is read ahead and was not requested is not read on. The rest of what was is: it holds slots that earlier requests may
 * need. */
static void drop_ahead(pl_expert_memory *m)
{
    int64_t kept = 0;
    for (int64_t i = 0; i < m->n_ahead; i++) {
        struct pl_stored_matrix *x = m->ahead[i];
        if (x->requested == m->clock) {
            if (x->state == LOADING)
                m->ahead[kept++] = x;
            continue;
        }
        x->ahead = 0;
        stop_reading(x);
    }
    m->n_ahead = kept;
    m->next_ahead = 0;
}

/* How much guesses are worth, now that it is known what was meant. */
static void judge_guesses(pl_expert_memory *m)
{
    int64_t right = 0;
    for (int64_t i = 0; i < m->n_guesses; i++)
        right += m->guesses[i]->requested == m->clock;
    if (m->n_guesses > 0)
        m->right += GUESS_WEIGHT * ((double)right / (double)m->n_guesses - m->right);
    m->n_guesses = 0;
}

static int segment_rows_of(const int32_t *ends, int s) { return ends[s] > (s > 0 ? ends[s - 1] : 0); }

static int has_most(const int32_t *ends, int n_segments)
{
    int n = 0;
    for (int s = 0; s < n_segments; s++)
        n += segment_rows_of(ends, s);
    return 2 * n > n_segments;
}

/* The segments of one product: those whose matrices lie in memory, those that are being read, the others. */
static void request_product(pl_expert_memory *m, const pl_matrix *const *matrices, int n_segments, const int32_t *ends,
                            int32_t *queue)
{
    int at = 0;
    for (int turn = 0; turn < 3; turn++)
        for (int s = 0; s < n_segments; s++) {
            struct pl_stored_matrix *x = matrices[s]->stored;
            const int ready = x->state == READY, own_turn = ready ? 0 : x->state == LOADING ? 1 : 2;
            if (!segment_rows_of(ends, s) || own_turn != turn)
                continue;
            queue[at++] = s;
            if (x->requested != m->clock)
                atomic_store(&x->uses, 0);
            atomic_fetch_add(&x->uses, pl_segment_items(x->panels));
            if (x->requested == m->clock)
                continue;
            x->requested = m->clock;
            m->requests[m->n_requests++] = x;
            m->counts.needed++;
            m->counts.found += ready && !x->ahead;
            if (ready && !m->scanning)
                x->last_use = m->clock; /* now, not when it is granted: earlier requests shall take other slots */
        }
    while (at < n_segments)
        queue[at++] = -1;
}

void pl_expert_request(pl_expert_memory *m, const pl_matrix *const *matrices, int n_products, int n_segments, const int32_t *ends,
                       int32_t *queue)
{
    pl_readers_enter(m);
    drop_requests(m);
    m->clock++;
    m->scanning = has_most(ends, n_segments);
    for (int i = 0; i < n_products; i++)
        request_product(m, matrices + (int64_t)i * n_segments, n_segments, ends, queue + (int64_t)i * n_segments);
    judge_guesses(m);
    drop_ahead(m);
    pl_slots_grant(m);
    pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
    pl_monitor_leave(m->monitor);
}

void pl_expert_expect(pl_expert_memory *m, const pl_matrix *const *matrices, int n_products, int n_segments, const int32_t *ends,
                      int if_most)
{
    const int most = has_most(ends, n_segments);
    if (if_most != most)
        return;
    pl_readers_enter(m);
    drop_ahead(m);
    m->n_guesses = 0;
    for (int64_t i = 0; i < (int64_t)n_products * n_segments && m->n_ahead < m->n_matrices; i++)
        if (segment_rows_of(ends, (int)(i % n_segments))) {
            struct pl_stored_matrix *x = matrices[i]->stored;
            if (!most && m->n_guesses < m->n_matrices)
                m->guesses[m->n_guesses++] = x;
            if (most || m->right >= GUESS_WORTH)
                m->ahead[m->n_ahead++] = x;
        }
    pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
    pl_monitor_leave(m->monitor);
}

const uint8_t *pl_expert_acquire(struct pl_stored_matrix *x)
{
    const uint8_t *panels = atomic_load_explicit(&x->panels_at, memory_order_acquire);
    if (panels || atomic_load(&x->uses) < 1) /* nobody would ever bring what was not requested */
        return panels;
    pl_expert_memory *m = x->memory;
    const double began = pl_seconds();
    pl_monitor_enter(m->monitor);
    while (!(x->pinned && (x->state == READY || x->state == FAILED)))
        pl_monitor_wait(m->monitor, PL_MONITOR_RESULT);
    panels = atomic_load(&x->panels_at);
    m->counts.waited += pl_seconds() - began;
    pl_monitor_leave(m->monitor);
    return panels;
}

void pl_expert_release(struct pl_stored_matrix *x)
{
    pl_expert_memory *m = x->memory;
    if (atomic_fetch_sub(&x->uses, 1) != 1)
        return;
    pl_monitor_enter(m->monitor);
    x->pinned = 0;
    atomic_store(&x->panels_at, NULL);
    if (m->next_ahead < m->n_ahead)
        pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
    if (m->n_granted < m->n_requests) {
        pl_slots_grant(m);
        pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
        pl_monitor_notify(m->monitor, PL_MONITOR_RESULT); /* what lay in memory may be granted now */
    }
    pl_monitor_leave(m->monitor);
}
