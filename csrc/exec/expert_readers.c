/* The threads that read an expert memory's files: each takes a part of a matrix, reads it and packs it into the matrix's slot. */
#include "exec/expert_state.h"
#include "types/panel.h"
#include "types/types.h"
#include <errno.h>
#include <stdlib.h>

#define ALIGNMENT 4096       /* of reads past the system's cache */
#define PART_BYTES (1 << 20) /* of a read, or a panel's where that is more */

static int64_t take_part(struct pl_stored_matrix *x)
{
    x->in_flight++;
    return x->next_part++;
}

/* The next part of what is read before it is requested -> NULL when there is none now. */
static struct pl_stored_matrix *next_part_ahead(pl_expert_memory *m, int64_t *part)
{
    for (; m->next_ahead < m->n_ahead; m->next_ahead++) {
        struct pl_stored_matrix *x = m->ahead[m->next_ahead];
        if (x->state == ABSENT && x->requested != m->clock) {
            if (!pl_slot_take(x, 1))
                return NULL;
            x->wanted = x->ahead = 1;
            x->last_use = m->clock;
        }
        if (x->state != LOADING || !x->wanted || x->next_part >= x->n_parts)
            continue;
        *part = take_part(x);
        return x;
    }
    return NULL;
}

/* The next part to read, of the first request that has one -> NULL when there is none now. */
static struct pl_stored_matrix *next_part(pl_expert_memory *m, int64_t *part)
{
    for (; m->next_read < m->n_granted; m->next_read++) {
        struct pl_stored_matrix *x = m->requests[m->next_read];
        if (x->state != LOADING || x->next_part >= x->n_parts)
            continue;
        *part = take_part(x);
        return x;
    }
    return next_part_ahead(m, part);
}

static void end_part(struct pl_stored_matrix *x, int failure)
{
    pl_expert_memory *m = x->memory;
    x->in_flight--;
    if (failure >= 0 && x->wanted) {
        m->failure = failure;
        m->failed_file = x->file;
        x->failed = 1;
        x->next_part = x->n_parts;
    }
    if (x->in_flight > 0 || x->next_part < x->n_parts)
        return;
    if (x->failed || !x->wanted)
        pl_slot_leave(x, x->wanted ? FAILED : ABSENT);
    else
        x->state = READY;
    pl_slot_publish(x);
    pl_slots_grant(m);
    pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
    pl_monitor_notify(m->monitor, PL_MONITOR_RESULT);
}

/* `bytes` of a file from `offset` on, somewhere in `buffer` -> -1, or errno, or 0 when the file ends before. */
static int read_bytes(const pl_model_file *file, int64_t offset, int64_t bytes, uint8_t *buffer, const uint8_t **at)
{
    const int64_t begin = offset / ALIGNMENT * ALIGNMENT, lead = offset - begin,
                  whole = (lead + bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (file->direct >= 0 && pl_read_at(file->direct, buffer, whole, begin) >= lead + bytes) {
        *at = buffer + lead;
        return -1;
    } /* otherwise the file system may want another alignment */
    const int64_t found = pl_read_at(file->plain, buffer, bytes, offset);
    *at = buffer;
    return found == bytes ? -1 : found < 0 ? (errno ? errno : EIO) : 0;
}

/* Reads a part and packs it into the slot -> as read_bytes. */
static int load_part(const struct pl_stored_matrix *x, int64_t part, uint8_t *buffer)
{
    const int64_t panel0 = part * x->part_panels, row0 = panel0 * PL_ROWS;
    const int64_t panel1 = panel0 + x->part_panels < x->panels ? panel0 + x->part_panels : x->panels;
    const int64_t row1 = panel1 * PL_ROWS < x->rows ? panel1 * PL_ROWS : x->rows;
    const uint8_t *rows;
    const int failure =
        read_bytes(&x->memory->files[x->file], x->offset + row0 * x->row_bytes, (row1 - row0) * x->row_bytes, buffer, &rows);
    for (int64_t p = panel0; p < panel1 && failure < 0; p++) {
        const int64_t row = p * PL_ROWS, left = x->rows - row;
        pl_pack_panel(x->type, rows + (row - row0) * x->row_bytes, x->row_bytes, (int)(left < PL_ROWS ? left : PL_ROWS), x->cols,
                      pl_slot_data(x) + p * x->panel_bytes);
    }
    return failure;
}

static void read_parts(void *arg)
{
    pl_expert_reader *self = arg;
    pl_expert_memory *m = self->memory;
    int64_t part;
    pl_monitor_enter(m->monitor);
    while (!m->stopping) {
        struct pl_stored_matrix *x = next_part(m, &part);
        if (!x) {
            pl_monitor_wait(m->monitor, PL_MONITOR_WORK);
            continue;
        }
        pl_monitor_leave(m->monitor);
        int failure = load_part(x, part, self->buffer);
        pl_monitor_enter(m->monitor);
        const int64_t rows = x->part_panels * PL_ROWS, first = part * rows;
        m->counts.bytes_read += (first + rows < x->rows ? rows : x->rows - first) * x->row_bytes;
        end_part(x, failure);
    }
    pl_monitor_leave(m->monitor);
}

static int start_threads(pl_expert_memory *m)
{
    int started = 0;
    m->forks = pl_forks();
    for (int i = 0; i < m->n_readers; i++) {
        m->readers[i].thread = pl_thread_start(read_parts, &m->readers[i]);
        started += m->readers[i].thread != NULL;
    }
    return started;
}

/* After a fork: the readers are in another process, whatever they were doing. At least one must start: until then the step that
 * needs it cannot go on. */
static void start_again(pl_expert_memory *m)
{
    pl_monitor_renew(m->monitor);
    for (int64_t i = 0; i < m->n_matrices; i++)
        if (m->matrices[i]->state == LOADING) {
            m->matrices[i]->in_flight = 0;
            pl_slot_leave(m->matrices[i], ABSENT);
        }
    for (int i = 0; i < m->n_readers; i++)
        if (m->readers[i].thread)
            pl_thread_forget(m->readers[i].thread);
    while (!start_threads(m))
        pl_yield();
}

void pl_readers_enter(pl_expert_memory *m)
{
    if (m->started && m->forks != pl_forks())
        start_again(m);
    pl_monitor_enter(m->monitor);
}

void pl_readers_divide(struct pl_stored_matrix *x)
{
    pl_expert_memory *m = x->memory;
    const int64_t of_panel = x->row_bytes * PL_ROWS;
    x->part_panels = of_panel < PART_BYTES ? PART_BYTES / of_panel : 1;
    x->part_panels = x->part_panels < x->panels ? x->part_panels : x->panels;
    x->n_parts = (x->panels + x->part_panels - 1) / x->part_panels;
    m->part_bytes = m->part_bytes > x->part_panels * of_panel ? m->part_bytes : x->part_panels * of_panel;
}

/* Of one reader: a part that begins and ends anywhere among whole blocks of the file, at a place of its own. */
static int64_t buffer_bytes(const pl_expert_memory *m) { return m->part_bytes + 3 * ALIGNMENT; }

int64_t pl_readers_bytes(const pl_expert_memory *m) { return m->n_readers * buffer_bytes(m); }

int pl_readers_start(pl_expert_memory *m)
{
    for (int i = 0; i < m->n_readers; i++) {
        pl_expert_reader *r = &m->readers[i];
        r->memory = m;
        r->allocated = pl_alloc((size_t)buffer_bytes(m), 0);
        r->buffer = (uint8_t *)r->allocated + (ALIGNMENT - (uintptr_t)r->allocated % ALIGNMENT) % ALIGNMENT;
        if (!r->allocated)
            return PL_ENOMEM;
    }
    return start_threads(m) ? PL_OK : PL_ENOMEM;
}

void pl_readers_free(pl_expert_memory *m)
{
    const int foreign = m->forks != pl_forks();
    if (!foreign && m->monitor) {
        pl_monitor_enter(m->monitor);
        m->stopping = 1;
        pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
        pl_monitor_leave(m->monitor);
    }
    for (int i = 0; m->readers && i < m->n_readers; i++) {
        pl_expert_reader *r = &m->readers[i];
        if (r->thread && foreign)
            pl_thread_forget(r->thread);
        else if (r->thread)
            pl_thread_join(r->thread);
        pl_release(r->allocated, (size_t)buffer_bytes(m));
    }
    free(m->readers);
}
