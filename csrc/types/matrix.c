/* Loading a matrix: panels packed by all threads. */
#include "types/matrix.h"
#include "api.h"
#include "types/blocks.h"
#include "platform/os.h"
#include "types/panel.h"
#include "platform/placement.h"
#include <stdlib.h>

typedef struct {
    int type, drop;
    const uint8_t *src;
    int64_t row_bytes, rows, cols;
    int64_t first, end, panel_bytes; /* panels */
    uint8_t *dst;                    /* of the first */
    const pl_division *division;
    pl_cursor cursors[PL_MAX_THREADS];
} pack_job;

#define DROPPED 16 /* panels at a time, so that loading takes little more memory than the weights */

static void pack_run(const pack_job *job, int64_t begin, int64_t end)
{
    const int64_t row0 = begin * PL_ROWS, row1 = end * PL_ROWS < job->rows ? end * PL_ROWS : job->rows;
    for (int64_t p = begin; p < end; p++) {
        int64_t row = p * PL_ROWS, left = job->rows - row;
        pl_pack_panel(job->type, job->src + row * job->row_bytes, job->row_bytes, (int)(left < PL_ROWS ? left : PL_ROWS), job->cols,
                      job->dst + (p - job->first) * job->panel_bytes);
    }
    if (job->drop)
        pl_drop_pages(job->src + row0 * job->row_bytes, (size_t)((row1 - row0) * job->row_bytes));
}

/* A thread packs the rows that it will multiply: who writes a page first has it in his node's memory, and two that begin in the
 * same huge page would both clear it. */
static void pack(void *arg, int thread)
{
    pack_job *job = arg;
    pl_work_queue queue = {.cursors = job->cursors, .division = job->division, .epoch = 1, .thread = thread};
    int64_t begin, end;
    while (pl_queue_take(&queue, job->end - job->first, 1, PL_QUARTER, &begin, &end))
        for (int64_t p = job->first + begin; p < job->first + end; p += DROPPED)
            pack_run(job, p, p + DROPPED < job->first + end ? p + DROPPED : job->first + end);
}

int64_t pl_panel_bytes(int type, int64_t cols)
{
    const pl_type_info *info = pl_type_find(type & ~PL_INT16);
    if (!info || info->panel_bytes == 0 || cols < 1 || cols % info->block_elements != 0)
        return 0;
    if (type & PL_INT16)
        return cols % 32 ? 0 : cols / 32 * PL_INT16_BLOCK;
    return cols / info->block_elements * info->panel_bytes;
}

void pl_pack_panels(pl_pool *pool, int type, const void *src, int drop, int64_t rows, int64_t cols, int64_t first, int64_t end,
                    void *dst)
{
    const pl_type_info *info = pl_type_find(type & ~PL_INT16);
    pack_job job = {.type = type,
                    .drop = drop,
                    .src = src,
                    .row_bytes = cols / info->block_elements * info->block_bytes,
                    .rows = rows,
                    .cols = cols,
                    .first = first,
                    .end = end,
                    .panel_bytes = pl_panel_bytes(type, cols),
                    .dst = dst};
    job.division = pl_placement_divide(pl_pool_placement(pool), pl_pool_prepare(pool), PL_FEW_TOKENS);
    pl_pool_run(pool, &(pl_job){pack, &job});
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
    if (arena->guard) {
        pl_mapping_free(arena->guard);
        pl_unmap_file(arena->data, (size_t)arena->bytes);
    } else {
        pl_release(arena->data, (size_t)arena->bytes);
    }
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

/* Without panels yet; NULL as pl_matrix_new. */
static pl_matrix *described(int type, int64_t rows, int64_t cols)
{
    int64_t panel_bytes = pl_panel_bytes(type, cols);
    pl_matrix *m = panel_bytes > 0 && rows >= 1 ? malloc(sizeof *m) : NULL;
    if (m)
        *m = (pl_matrix){
            .type = type, .rows = rows, .cols = cols, .panels = (rows + PL_ROWS - 1) / PL_ROWS, .panel_bytes = panel_bytes};
    return m;
}

pl_matrix *pl_matrix_new(pl_pool *pool, pl_weight_arena *arena, int type, const void *src, int drop, int64_t rows, int64_t cols)
{
    pl_matrix *m = described(type, rows, cols);
    if (!m)
        return NULL;
    if (!place(m, arena)) {
        free(m);
        return NULL;
    }
    pl_pack_panels(pool, type, src, drop, rows, cols, 0, m->panels, m->data);
    return m;
}

pl_matrix *pl_matrix_view(pl_weight_arena *arena, int64_t offset, int type, int64_t rows, int64_t cols)
{
    pl_matrix *m = described(type, rows, cols);
    if (!m || offset < 0 || offset % 64 != 0 || offset > arena->bytes || pl_matrix_bytes(m) > arena->bytes - offset) {
        free(m);
        return NULL;
    }
    m->arena = arena;
    m->data = arena->data + offset;
    atomic_fetch_add(&arena->owners, 1);
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
