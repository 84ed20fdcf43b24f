/* Making an expert memory (expert_memory.h), what is asked of it from outside, and taking it down. */
#include "exec/expert_state.h"
#include "types/matrix.h"
#include "types/panel.h"
#include "types/types.h"
#include <stdlib.h>

#define MAX_READERS 256
#define MAX_PANEL_BYTES (1 << 28)

pl_expert_memory *pl_expert_memory_of(const struct pl_stored_matrix *x) { return x->memory->started ? x->memory : NULL; }
void pl_expert_memory_keep(pl_expert_memory *m) { atomic_fetch_add(&m->owners, 1); }

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
        m->files[i] = (pl_model_file){files[i], direct[i]};
    return m;
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
    const int class = matrix && x ? pl_slots_add(m, (panels * panel_bytes + 63) / 64 * 64) : -1;
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
    pl_readers_divide(x);
    m->matrices[m->n_matrices++] = x;
    *matrix = (pl_matrix){.type = type, .rows = rows, .cols = cols, .panels = panels, .panel_bytes = panel_bytes, .stored = x};
    return matrix;
}

int64_t pl_expert_memory_least(const pl_expert_memory *m) { return pl_readers_bytes(m) + pl_slots_least(m); }

int64_t pl_expert_memory_start(pl_expert_memory *m, int64_t bytes)
{
    if (m->started || m->n_matrices == 0 || bytes < pl_expert_memory_least(m))
        return PL_EINVAL;
    const size_t n = (size_t)m->n_matrices;
    m->started = 1;
    m->requests = calloc(n, sizeof *m->requests);
    m->ahead = calloc(n, sizeof *m->ahead);
    m->guesses = calloc(n, sizeof *m->guesses);
    const int64_t slots = pl_slots_make(m, bytes - pl_readers_bytes(m));
    if (!m->requests || !m->ahead || !m->guesses || slots < 0 || pl_readers_start(m) < 0)
        return PL_ENOMEM;
    return slots + pl_readers_bytes(m);
}

void pl_expert_memory_free(pl_expert_memory *m)
{
    if (!m || atomic_fetch_sub(&m->owners, 1) != 1)
        return;
    pl_readers_free(m);
    pl_slots_free(m);
    for (int i = 0; i < m->n_files; i++) {
        pl_close(m->files[i].plain);
        if (m->files[i].direct >= 0)
            pl_close(m->files[i].direct);
    }
    for (int64_t i = 0; i < m->n_matrices; i++)
        free(m->matrices[i]);
    if (m->monitor)
        pl_monitor_free(m->monitor);
    free(m->matrices);
    free(m->requests);
    free(m->ahead);
    free(m->guesses);
    free(m->files);
    free(m);
}

void pl_expert_memory_counts(pl_expert_memory *m, pl_expert_counts *counts)
{
    pl_readers_enter(m);
    *counts = m->counts;
    counts->right = m->right;
    pl_monitor_leave(m->monitor);
}

int pl_expert_memory_failure(pl_expert_memory *m, int32_t *file)
{
    pl_readers_enter(m);
    int failure = m->failure;
    *file = m->failed_file;
    m->failure = PL_EINVAL;
    pl_monitor_leave(m->monitor);
    return failure;
}
