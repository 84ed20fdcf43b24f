/* Room for matrices: slots of as many sizes as there are, who gets one, and which matrix goes when another one needs its slot. */
#include "exec/expert_state.h"
#include <stdlib.h>

int pl_slots_add(pl_expert_memory *m, int64_t bytes)
{
    for (int i = 0; i < m->n_classes; i++)
        if (m->classes[i].bytes == bytes) {
            m->classes[i].n_matrices++;
            return i;
        }
    pl_slot_class *more = realloc(m->classes, sizeof *more * ((size_t)m->n_classes + 1));
    if (!more)
        return -1;
    m->classes = more;
    m->classes[m->n_classes] = (pl_slot_class){.bytes = bytes, .n_matrices = 1};
    return m->n_classes++;
}

int64_t pl_slots_least(const pl_expert_memory *m)
{
    int64_t bytes = 0;
    for (int i = 0; i < m->n_classes; i++)
        bytes += m->classes[i].bytes;
    return bytes;
}

/* Each size gets slots in proportion to its matrices, and one at least. */
static void divide(pl_expert_memory *m, int64_t bytes)
{
    double total = 0;
    for (int i = 0; i < m->n_classes; i++)
        total += (double)m->classes[i].bytes * m->classes[i].n_matrices;
    int64_t left = bytes;
    for (int i = 0; i < m->n_classes; i++) {
        pl_slot_class *c = &m->classes[i];
        double share = (double)bytes / total * c->n_matrices;
        c->n_slots = share < 1 ? 1 : share < c->n_matrices ? (int)share : c->n_matrices;
        left -= c->n_slots * c->bytes;
    }
    for (int i = 0; i < m->n_classes; i++) { /* those that had to get one may have taken too much; or some is left over */
        pl_slot_class *c = &m->classes[i];
        while (left < 0 && c->n_slots > 1) {
            c->n_slots--;
            left += c->bytes;
        }
        while (left >= c->bytes && c->n_slots < c->n_matrices) {
            c->n_slots++;
            left -= c->bytes;
        }
    }
}

int64_t pl_slots_make(pl_expert_memory *m, int64_t bytes)
{
    int64_t taken = 0;
    divide(m, bytes);
    for (int i = 0; i < m->n_classes; i++) {
        pl_slot_class *c = &m->classes[i];
        c->data = pl_alloc((size_t)(c->bytes * c->n_slots), 0);
        c->holders = calloc((size_t)c->n_slots, sizeof *c->holders);
        if (!c->data || !c->holders)
            return PL_ENOMEM;
        taken += c->bytes * c->n_slots;
    }
    return taken;
}

void pl_slots_free(pl_expert_memory *m)
{
    for (int i = 0; i < m->n_classes; i++) {
        pl_release(m->classes[i].data, (size_t)(m->classes[i].bytes * m->classes[i].n_slots));
        free(m->classes[i].holders);
    }
    free(m->classes);
}

uint8_t *pl_slot_data(const struct pl_stored_matrix *x)
{
    const pl_slot_class *c = &x->memory->classes[x->class];
    return c->data + x->slot * c->bytes;
}

void pl_slot_leave(struct pl_stored_matrix *x, int state)
{
    if (x->slot >= 0)
        x->memory->classes[x->class].holders[x->slot] = NULL;
    x->slot = -1;
    x->ahead = 0;
    x->state = state;
}

/* Whether a matrix may make room, for one that is read ahead only if that is likely to be needed before it: not what was just
 * used, but in a scan just that, which comes last in the next one. */
static int may_go(const pl_expert_memory *m, const struct pl_stored_matrix *x, int for_ahead)
{
    if (x->pinned || x->state != READY)
        return 0;
    return !for_ahead || (!x->ahead && (m->scanning ? x->last_use + 1 >= m->clock : x->last_use < m->clock));
}

/* Which of two goes first: what was used the longest ago. A scan over all layers needs again what it used last only after all
 * the others, so that there that goes: by the longest ago it would find nothing, however large the memory. */
static int goes_before(const pl_expert_memory *m, const struct pl_stored_matrix *x, const struct pl_stored_matrix *other)
{
    if (x->ahead != other->ahead)
        return other->ahead;
    return m->scanning ? x->last_use > other->last_use : x->last_use < other->last_use;
}

int pl_slot_take(struct pl_stored_matrix *x, int for_ahead)
{
    pl_slot_class *c = &x->memory->classes[x->class];
    int best = -1;
    for (int i = 0; i < c->n_slots; i++) {
        if (!c->holders[i]) {
            best = i;
            break;
        }
        if (may_go(x->memory, c->holders[i], for_ahead) && (best < 0 || goes_before(x->memory, c->holders[i], c->holders[best])))
            best = i;
    }
    if (best < 0)
        return 0;
    if (c->holders[best])
        pl_slot_leave(c->holders[best], ABSENT);
    c->holders[best] = x;
    x->slot = best;
    x->state = LOADING;
    x->next_part = x->in_flight = 0;
    x->failed = 0;
    return 1;
}

void pl_slot_publish(struct pl_stored_matrix *x)
{
    if (x->pinned && x->state == READY)
        atomic_store_explicit(&x->panels_at, pl_slot_data(x), memory_order_release);
}

void pl_slots_grant(pl_expert_memory *m)
{
    for (; m->n_granted < m->n_requests; m->n_granted++) {
        struct pl_stored_matrix *x = m->requests[m->n_granted];
        if ((x->state == LOADING && !x->wanted) || (x->state == ABSENT && !pl_slot_take(x, 0)))
            return; /* until a read has ended, or a slot is given back */
        x->last_use = m->clock;
        x->wanted = x->pinned = 1;
        x->ahead = 0;
        pl_slot_publish(x);
    }
}
