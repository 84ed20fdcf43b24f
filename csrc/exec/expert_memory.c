/* The slots, the requests and the readers of expert_memory.h. All of it changes inside one monitor: readers wait there for
 * work, products for results. */
#include "exec/expert_memory.h"
#include "platform/os.h"
#include "types/matrix.h"
#include "types/panel.h"
#include "types/types.h"
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ALIGNMENT 4096         /* of reads past the system's cache */
#define PART_BYTES (1 << 20)   /* of a read, or a panel's where that is more */
#define MAX_READERS 256
#define MAX_PANEL_BYTES (1 << 28)

#define GUESS_WORTH 0.6        /* share of the guesses that must come true for them to be read */
#define GUESS_WEIGHT 0.1       /* of the newest one in that share */

enum { ABSENT, LOADING, READY, FAILED };

typedef struct {
    int64_t bytes;
    int n_slots, n_matrices; /* that are of this size */
    uint8_t *data;           /* (n_slots, bytes) */
    struct pl_stored_matrix **holders;
} slot_class;

struct pl_stored_matrix {
    pl_expert_memory *memory;
    int file, type;
    int64_t offset, row_bytes; /* in the file */
    int64_t rows, cols, panels, panel_bytes;
    int64_t part_panels, n_parts; /* panels of a read, and reads */
    int class, slot;              /* slot -1: none */
    int state, pinned;            /* pinned: granted, and not given back */
    int wanted, failed;           /* wanted 0: what is being read is of no use any more */
    int64_t next_part, in_flight;
    uint64_t last_use, requested; /* by the memory's clock */
    int ahead;                    /* it was read before it was requested */
    _Atomic int64_t uses;               /* work items that are to give it back */
    _Atomic(const uint8_t *) panels_at; /* while it is pinned and READY */
};

typedef struct {
    int plain, direct;
} model_file;

typedef struct {
    pl_expert_memory *memory;
    pl_thread *thread;
    uint8_t *buffer; /* begins on ALIGNMENT */
    void *allocated;
} reader;

struct pl_expert_memory {
    _Atomic int owners;
    unsigned forks; /* pl_forks() of the process whose threads the readers are */
    pl_monitor *monitor;
    model_file *files;
    int n_files, n_readers, started, stopping;
    reader *readers;
    int64_t buffer_bytes;
    struct pl_stored_matrix **matrices, **requests, **ahead, **guesses; /* each n_matrices long */
    int64_t n_matrices, capacity;
    int64_t n_requests, n_granted, next_read;
    int64_t n_ahead, next_ahead; /* what is read before it is requested */
    int64_t n_guesses;           /* what a router's guess named for the next request */
    double right;                /* share of the guesses that came true, the later ones counting more */
    slot_class *classes;
    int n_classes;
    uint64_t clock;
    int scanning; /* most experts of a layer are needed */
    int failure, failed_file;
    pl_expert_counts counts;
};

pl_expert_memory *pl_expert_memory_of(const struct pl_stored_matrix *x) { return x->memory->started ? x->memory : NULL; }
void pl_expert_memory_keep(pl_expert_memory *m) { atomic_fetch_add(&m->owners, 1); }

/* ---- slots ---- */

static uint8_t *slot_data(const struct pl_stored_matrix *x)
{
    const slot_class *c = &x->memory->classes[x->class];
    return c->data + x->slot * c->bytes;
}

static void leave_slot(struct pl_stored_matrix *x, int state)
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

/* A slot for x -> 0 when all are in use. */
static int take_slot(struct pl_stored_matrix *x, int for_ahead)
{
    slot_class *c = &x->memory->classes[x->class];
    int best = -1;
    for (int i = 0; i < c->n_slots; i++) {
        if (!c->holders[i]) {
            best = i;
            break;
        }
        if (may_go(x->memory, c->holders[i], for_ahead) &&
            (best < 0 || goes_before(x->memory, c->holders[i], c->holders[best])))
            best = i;
    }
    if (best < 0)
        return 0;
    if (c->holders[best])
        leave_slot(c->holders[best], ABSENT);
    c->holders[best] = x;
    x->slot = best;
    x->state = LOADING;
    x->next_part = x->in_flight = 0;
    x->failed = 0;
    return 1;
}

/* ---- requests ---- */

static void publish(struct pl_stored_matrix *x)
{
    if (x->pinned && x->state == READY)
        atomic_store_explicit(&x->panels_at, slot_data(x), memory_order_release);
}

/* Gives slots to requests in their order, as far as there are any. */
static void grant(pl_expert_memory *m)
{
    for (; m->n_granted < m->n_requests; m->n_granted++) {
        struct pl_stored_matrix *x = m->requests[m->n_granted];
        if ((x->state == LOADING && !x->wanted) || (x->state == ABSENT && !take_slot(x, 0)))
            return; /* until a read has ended, or a slot is given back */
        x->last_use = m->clock;
        x->wanted = x->pinned = 1;
        x->ahead = 0;
        publish(x);
    }
}

static void stop_reading(struct pl_stored_matrix *x)
{
    if (x->state == FAILED)
        x->state = ABSENT;
    if (x->state != LOADING)
        return;
    x->wanted = 0;
    x->next_part = x->n_parts;
    if (x->in_flight == 0)
        leave_slot(x, ABSENT);
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

static void start_readers(pl_expert_memory *m);

static void enter(pl_expert_memory *m)
{
    if (m->started && m->forks != pl_forks())
        start_readers(m);
    pl_monitor_enter(m->monitor);
}

void pl_expert_request(pl_expert_memory *m, const pl_matrix *const *matrices, int n_products, int n_segments,
                       const int32_t *ends, int32_t *queue)
{
    enter(m);
    drop_requests(m);
    m->clock++;
    m->scanning = has_most(ends, n_segments);
    for (int i = 0; i < n_products; i++)
        request_product(m, matrices + (int64_t)i * n_segments, n_segments, ends, queue + (int64_t)i * n_segments);
    judge_guesses(m);
    drop_ahead(m);
    grant(m);
    pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
    pl_monitor_leave(m->monitor);
}

void pl_expert_expect(pl_expert_memory *m, const pl_matrix *const *matrices, int n_products, int n_segments,
                      const int32_t *ends, int if_most)
{
    const int most = has_most(ends, n_segments);
    if (if_most != most)
        return;
    enter(m);
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
        grant(m);
        pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
        pl_monitor_notify(m->monitor, PL_MONITOR_RESULT); /* what lay in memory may be granted now */
    }
    pl_monitor_leave(m->monitor);
}

/* ---- readers ---- */

static int64_t take_part(struct pl_stored_matrix *x)
{
    x->in_flight++;
    return x->next_part++;
}

/* The same of what is read ahead. */
static struct pl_stored_matrix *next_part_ahead(pl_expert_memory *m, int64_t *part)
{
    for (; m->next_ahead < m->n_ahead; m->next_ahead++) {
        struct pl_stored_matrix *x = m->ahead[m->next_ahead];
        if (x->state == ABSENT && x->requested != m->clock) {
            if (!take_slot(x, 1))
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
        leave_slot(x, x->wanted ? FAILED : ABSENT);
    else
        x->state = READY;
    publish(x);
    grant(m);
    pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
    pl_monitor_notify(m->monitor, PL_MONITOR_RESULT);
}

/* `bytes` of a file from `offset` on, somewhere in `buffer` -> -1, or errno, or 0 when the file ends before. */
static int read_bytes(const model_file *file, int64_t offset, int64_t bytes, uint8_t *buffer, const uint8_t **at)
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
    const int failure = read_bytes(&x->memory->files[x->file], x->offset + row0 * x->row_bytes, (row1 - row0) * x->row_bytes,
                                   buffer, &rows);
    for (int64_t p = panel0; p < panel1 && failure < 0; p++) {
        const int64_t row = p * PL_ROWS, left = x->rows - row;
        pl_pack_panel(x->type, rows + (row - row0) * x->row_bytes, x->row_bytes, (int)(left < PL_ROWS ? left : PL_ROWS), x->cols,
                      slot_data(x) + p * x->panel_bytes);
    }
    return failure;
}

static void read_parts(void *arg)
{
    reader *self = arg;
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

/* Also after a fork: the readers are in another process, whatever they were doing. At least one must start: until then the
 * step that needs it cannot go on. */
static void start_readers(pl_expert_memory *m)
{
    int started = 0;
    m->forks = pl_forks();
    pl_monitor_renew(m->monitor);
    for (int64_t i = 0; i < m->n_matrices; i++)
        if (m->matrices[i]->state == LOADING) {
            m->matrices[i]->in_flight = 0;
            leave_slot(m->matrices[i], ABSENT);
        }
    for (int i = 0; i < m->n_readers; i++)
        if (m->readers[i].thread) {
            pl_thread_forget(m->readers[i].thread);
            m->readers[i].thread = NULL;
        }
    for (; !started; pl_yield())
        for (int i = 0; i < m->n_readers; i++) {
            m->readers[i].thread = pl_thread_start(read_parts, &m->readers[i]);
            started += m->readers[i].thread != NULL;
        }
}

/* ---- making it ---- */

pl_expert_memory *pl_expert_memory_new(const int32_t *files, const int32_t *direct, int32_t n_files, int32_t n_readers)
{
    if (n_files < 1 || n_readers < 1 || n_readers > MAX_READERS)
        return NULL;
    pl_expert_memory *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    atomic_store(&m->owners, 1);
    m->n_files = n_files;
    m->n_readers = n_readers;
    m->failure = PL_EINVAL;
    m->right = 1;
    m->monitor = pl_monitor_new();
    m->files = calloc((size_t)n_files, sizeof *m->files);
    m->readers = calloc((size_t)n_readers, sizeof *m->readers);
    if (!m->monitor || !m->files || !m->readers) {
        m->n_files = 0;
        pl_expert_memory_free(m);
        return NULL;
    }
    for (int i = 0; i < n_files; i++)
        m->files[i] = (model_file){files[i], direct[i]};
    return m;
}

static int add_class(pl_expert_memory *m, int64_t bytes)
{
    for (int i = 0; i < m->n_classes; i++)
        if (m->classes[i].bytes == bytes) {
            m->classes[i].n_matrices++;
            return i;
        }
    slot_class *more = realloc(m->classes, sizeof *more * ((size_t)m->n_classes + 1));
    if (!more)
        return -1;
    m->classes = more;
    m->classes[m->n_classes] = (slot_class){.bytes = bytes, .n_matrices = 1};
    return m->n_classes++;
}

static int make_room(pl_expert_memory *m)
{
    if (m->n_matrices < m->capacity)
        return 1;
    const size_t n = 2 * (size_t)m->capacity + 64;
    struct pl_stored_matrix **more = realloc(m->matrices, n * sizeof *more);
    if (more)
        m->matrices = more;
    m->capacity = more ? (int64_t)n : m->capacity;
    return more != NULL;
}

pl_matrix *pl_expert_memory_add(pl_expert_memory *m, int32_t file, int64_t offset, int type, int64_t rows, int64_t cols)
{
    const pl_type_info *info = pl_type_find(type);
    const int64_t k = pl_panel_block_k(type);
    if (m->started || file < 0 || file >= m->n_files || offset < 0 || !info || k == 0 || rows < 1 || cols < 1 ||
        cols % info->block_elements != 0 || cols / info->block_elements * info->block_bytes * PL_ROWS > MAX_PANEL_BYTES ||
        !make_room(m))
        return NULL;
    pl_matrix *matrix = malloc(sizeof *matrix);
    struct pl_stored_matrix *x = calloc(1, sizeof *x);
    const int64_t panels = (rows + PL_ROWS - 1) / PL_ROWS, panel_bytes = cols / k * pl_panel_block_bytes(type);
    const int class = matrix && x ? add_class(m, (panels * panel_bytes + 63) / 64 * 64) : -1;
    if (class < 0) {
        free(matrix);
        free(x);
        return NULL;
    }
    *x = (struct pl_stored_matrix){.memory = m,
                                   .file = file,
                                   .type = type,
                                   .offset = offset,
                                   .row_bytes = cols / info->block_elements * info->block_bytes,
                                   .rows = rows,
                                   .cols = cols,
                                   .panels = panels,
                                   .panel_bytes = panel_bytes,
                                   .class = class,
                                   .slot = -1};
    const int64_t of_panel = x->row_bytes * PL_ROWS;
    x->part_panels = of_panel < PART_BYTES ? PART_BYTES / of_panel : 1;
    x->part_panels = x->part_panels < panels ? x->part_panels : panels;
    x->n_parts = (panels + x->part_panels - 1) / x->part_panels;
    m->buffer_bytes = m->buffer_bytes > x->part_panels * of_panel ? m->buffer_bytes : x->part_panels * of_panel;
    m->matrices[m->n_matrices++] = x;
    *matrix = (pl_matrix){
        .type = type, .rows = rows, .cols = cols, .panels = panels, .panel_bytes = panel_bytes, .stored = x};
    return matrix;
}

static int64_t reader_bytes(const pl_expert_memory *m) { return m->n_readers * (m->buffer_bytes + 3 * ALIGNMENT); }

int64_t pl_expert_memory_least(const pl_expert_memory *m)
{
    int64_t bytes = reader_bytes(m);
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
        slot_class *c = &m->classes[i];
        double share = (double)bytes / total * c->n_matrices;
        c->n_slots = share < 1 ? 1 : share < c->n_matrices ? (int)share : c->n_matrices;
        left -= c->n_slots * c->bytes;
    }
    for (int i = 0; i < m->n_classes; i++) { /* those that had to get one may have taken too much; or some is left over */
        slot_class *c = &m->classes[i];
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

static int allocate(pl_expert_memory *m)
{
    for (int i = 0; i < m->n_classes; i++) {
        slot_class *c = &m->classes[i];
        c->data = pl_alloc((size_t)(c->bytes * c->n_slots), 0);
        c->holders = calloc((size_t)c->n_slots, sizeof *c->holders);
        if (!c->data || !c->holders)
            return 0;
    }
    for (int i = 0; i < m->n_readers; i++) {
        reader *r = &m->readers[i];
        r->memory = m;
        r->allocated = pl_alloc((size_t)(m->buffer_bytes + 3 * ALIGNMENT), 0);
        r->buffer = (uint8_t *)r->allocated + (ALIGNMENT - (uintptr_t)r->allocated % ALIGNMENT) % ALIGNMENT;
        if (!r->allocated)
            return 0;
    }
    const size_t n = (size_t)m->n_matrices + 1;
    m->requests = calloc(n, sizeof *m->requests);
    m->ahead = calloc(n, sizeof *m->ahead);
    m->guesses = calloc(n, sizeof *m->guesses);
    return m->requests && m->ahead && m->guesses;
}

int64_t pl_expert_memory_start(pl_expert_memory *m, int64_t bytes)
{
    if (m->started || m->n_matrices == 0 || bytes < pl_expert_memory_least(m))
        return PL_EINVAL;
    m->started = 1;
    divide(m, bytes - reader_bytes(m));
    if (!allocate(m))
        return PL_ENOMEM;
    start_readers(m);
    int64_t taken = reader_bytes(m);
    for (int i = 0; i < m->n_classes; i++)
        taken += m->classes[i].bytes * m->classes[i].n_slots;
    return taken;
}

static void stop_readers(pl_expert_memory *m)
{
    const int foreign = m->forks != pl_forks();
    if (!foreign && m->monitor) {
        pl_monitor_enter(m->monitor);
        m->stopping = 1;
        pl_monitor_notify(m->monitor, PL_MONITOR_WORK);
        pl_monitor_leave(m->monitor);
    }
    for (int i = 0; m->readers && i < m->n_readers; i++) {
        reader *r = &m->readers[i];
        if (r->thread && foreign)
            pl_thread_forget(r->thread);
        else if (r->thread)
            pl_thread_join(r->thread);
        pl_release(r->allocated, (size_t)(m->buffer_bytes + 3 * ALIGNMENT));
    }
}

void pl_expert_memory_free(pl_expert_memory *m)
{
    if (!m || atomic_fetch_sub(&m->owners, 1) != 1)
        return;
    stop_readers(m);
    for (int i = 0; i < m->n_files; i++) {
        pl_close(m->files[i].plain);
        if (m->files[i].direct >= 0)
            pl_close(m->files[i].direct);
    }
    for (int i = 0; i < m->n_classes; i++) {
        pl_release(m->classes[i].data, (size_t)(m->classes[i].bytes * m->classes[i].n_slots));
        free(m->classes[i].holders);
    }
    for (int64_t i = 0; i < m->n_matrices; i++)
        free(m->matrices[i]);
    if (m->monitor)
        pl_monitor_free(m->monitor);
    free(m->matrices);
    free(m->requests);
    free(m->ahead);
    free(m->guesses);
    free(m->classes);
    free(m->readers);
    free(m->files);
    free(m);
}

void pl_expert_memory_counts(pl_expert_memory *m, pl_expert_counts *counts)
{
    enter(m);
    *counts = m->counts;
    counts->right = m->right;
    pl_monitor_leave(m->monitor);
}

int pl_expert_memory_failure(pl_expert_memory *m, int32_t *file)
{
    enter(m);
    int failure = m->failure;
    *file = m->failed_file;
    m->failure = PL_EINVAL;
    pl_monitor_leave(m->monitor);
    return failure;
}
