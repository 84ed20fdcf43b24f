/* Loading a matrix: panels packed by all threads. */
#include "types/matrix.h"
#include "api.h"
#include "types/blocks.h"
#include "platform/os.h"
#include "types/panel.h"
#include "platform/threads.h"
#include <stdlib.h>

typedef struct {
    pl_matrix *matrix;
    const uint8_t *src;
    int64_t row_bytes;
    int drop;
    pl_counter counter;
} pack_job;

static void pack(void *arg, int thread)
{
    pack_job *job = arg;
    const pl_matrix *m = job->matrix;
    int64_t begin, end;
    (void)thread;
    while (pl_take(&job->counter, 0, m->panels, 16, &begin, &end)) {
        int64_t row0 = begin * PL_ROWS, row1 = end * PL_ROWS < m->rows ? end * PL_ROWS : m->rows;
        for (int64_t p = begin; p < end; p++) {
            int64_t row = p * PL_ROWS, left = m->rows - row;
            pl_pack_panel(m->type, job->src + row * job->row_bytes, job->row_bytes, (int)(left < PL_ROWS ? left : PL_ROWS),
                          m->cols, m->data + p * m->panel_bytes);
        }
        if (job->drop) /* what is packed: loading takes little more memory than the weights */
            pl_drop_pages(job->src + row0 * job->row_bytes, (size_t)((row1 - row0) * job->row_bytes));
    }
}

pl_weight_arena *pl_weight_arena_new(int64_t bytes)
{
    pl_weight_arena *arena = bytes > 0 ? calloc(1, sizeof *arena) : NULL;
    if (!arena)
        return NULL;
    atomic_store(&arena->owners, 1);
    arena->bytes = bytes;
    arena->data = pl_alloc((size_t)bytes, 0);
    if (!arena->data) {
        free(arena);
        return NULL;
    }
    return arena;
}

void pl_weight_arena_free(pl_weight_arena *arena)
{
    if (!arena || atomic_fetch_sub(&arena->owners, 1) != 1)
        return;
    pl_release(arena->data, (size_t)arena->bytes);
    free(arena);
}

/* Room for the matrix's panels, in the arena if there is some left. */
static int place(pl_matrix *m, pl_weight_arena *arena)
{
    int64_t bytes = (pl_matrix_bytes(m) + 63) / 64 * 64;
    if (arena && arena->used + bytes <= arena->bytes) {
        m->arena = arena;
        m->data = arena->data + arena->used;
        arena->used += bytes;
        atomic_fetch_add(&arena->owners, 1);
    } else {
        m->data = pl_alloc((size_t)bytes, 0);
    }
    return m->data != NULL;
}

pl_matrix *pl_matrix_new(pl_pool *pool, pl_weight_arena *arena, int type, const void *src, int drop, int64_t rows, int64_t cols)
{
    const pl_type_info *info = pl_type_find(type);
    int64_t k = pl_panel_block_k(type);
    if (!info || k == 0 || rows < 1 || cols < 1 || cols % info->block_elements != 0)
        return NULL;
    pl_matrix *m = malloc(sizeof *m);
    if (!m)
        return NULL;
    *m = (pl_matrix){.type = type, .rows = rows, .cols = cols, .panels = (rows + PL_ROWS - 1) / PL_ROWS};
    m->panel_bytes = cols / k * pl_panel_block_bytes(type);
    if (!place(m, arena)) {
        free(m);
        return NULL;
    }
    pack_job job = {.matrix = m, .src = src, .row_bytes = cols / info->block_elements * info->block_bytes, .drop = drop};
    pl_pool_run(pool, &(pl_job){pack, &job});
    return m;
}

int64_t pl_matrix_bytes(const pl_matrix *m) { return m->panels * m->panel_bytes; }

void pl_matrix_free(pl_matrix *m)
{
    if (!m)
        return;
    if (m->arena)
        pl_weight_arena_free(m->arena);
    else
        pl_release(m->data, (size_t)((pl_matrix_bytes(m) + 63) / 64 * 64));
    free(m);
}
