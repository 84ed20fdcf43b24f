/* Panels in a file: mapped, and checked by sums of its blocks. */
#include "api.h"
#include "platform/os.h"
#include "platform/threads.h"
#include "types/matrix.h"
#include <stdlib.h>
#include <string.h>

#define LANES 8 /* 64-bit words side by side, so that no multiplication waits for the one before */

pl_weight_arena *pl_weight_arena_map(int file, int64_t offset, int64_t bytes)
{
    pl_weight_arena *arena = bytes > 0 ? calloc(1, sizeof *arena) : NULL;
    if (!arena)
        return NULL;
    atomic_store(&arena->owners, 1);
    arena->bytes = arena->used = bytes;
    arena->data = pl_map_file(file, offset, (size_t)bytes);
    if (arena->data)
        arena->guard = pl_mapping_guard(arena->data, (uint64_t)bytes);
    if (!arena->guard) {
        if (arena->data)
            pl_unmap_file(arena->data, (size_t)bytes);
        free(arena);
        return NULL;
    }
    return arena;
}

int64_t pl_weight_arena_lost(const pl_weight_arena *arena) { return arena->guard ? pl_mapping_lost(arena->guard) : 0; }

static uint64_t rotated(uint64_t x, int bits) { return x << bits | x >> (64 - bits); }

/* Every step can be undone when the word is known, so two blocks that differ in one word have different sums. */
static uint64_t block_sum(const uint8_t *data, int64_t bytes)
{
    const uint64_t a = UINT64_C(0x9e3779b97f4a7c15), b = UINT64_C(0xd6e8feb86659fd93);
    uint64_t lanes[LANES], sum = (uint64_t)bytes * a;
    for (int i = 0; i < LANES; i++)
        lanes[i] = a * (uint64_t)(i + 1);
    for (int64_t at = 0; at < bytes; at += 8 * LANES) {
        uint64_t words[LANES];
        memcpy(words, data + at, sizeof words);
        for (int i = 0; i < LANES; i++)
            lanes[i] = rotated((lanes[i] ^ words[i]) * b, 29);
    }
    for (int i = 0; i < LANES; i++)
        sum = rotated((sum ^ lanes[i]) * b, 31);
    return sum ^ sum >> 32;
}

typedef struct {
    const uint8_t *data;
    int64_t bytes, first, end;
    uint64_t *sums;        /* to be filled; NULL: compared */
    const uint64_t *known; /* to be compared with */
    int all;
    _Atomic int64_t n_other;
    pl_counter counter;
} sum_job;

static int64_t block_bytes(const sum_job *job, int64_t block)
{
    int64_t left = job->bytes - block * PL_SUM_BLOCK;
    return left < PL_SUM_BLOCK ? left : PL_SUM_BLOCK;
}

static int is_wanted(const sum_job *job, int64_t block)
{
    return job->all || !pl_in_memory(job->data + block * PL_SUM_BLOCK, (size_t)block_bytes(job, block));
}

static void sum_blocks(void *arg, int thread)
{
    sum_job *job = arg;
    int64_t begin, end;
    (void)thread;
    while (pl_take(&job->counter, 0, job->end - job->first, 1, &begin, &end)) {
        int64_t block = job->first + begin;
        if (!is_wanted(job, block))
            continue;
        uint64_t sum = block_sum(job->data + block * PL_SUM_BLOCK, block_bytes(job, block));
        if (job->sums)
            job->sums[block] = sum;
        else if (sum != job->known[block])
            atomic_fetch_add(&job->n_other, 1);
    }
}

void pl_block_sums(pl_pool *pool, const void *data, int64_t bytes, uint64_t *sums)
{
    int64_t n = (bytes + PL_SUM_BLOCK - 1) / PL_SUM_BLOCK;
    sum_job job = {.data = data, .bytes = bytes, .end = n, .sums = sums, .all = 1};
    pl_pool_run(pool, &(pl_job){sum_blocks, &job});
}

int64_t pl_weight_arena_check(pl_pool *pool, const pl_weight_arena *arena, int64_t first, int64_t end, const uint64_t *sums,
                              int all)
{
    int64_t n = (arena->bytes + PL_SUM_BLOCK - 1) / PL_SUM_BLOCK;
    sum_job job = {.data = arena->data,
                   .bytes = arena->bytes,
                   .first = first,
                   .end = end < n ? end : n,
                   .known = sums,
                   .all = all};
    while (job.first < job.end && !is_wanted(&job, job.first)) /* as a rule all: nobody is woken for that */
        job.first++;
    if (job.first < job.end)
        pl_pool_run(pool, &(pl_job){sum_blocks, &job});
    return atomic_load(&job.n_other);
}
