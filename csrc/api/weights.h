#ifndef PL_API_WEIGHTS_H
#define PL_API_WEIGHTS_H
#include "api/cpu.h"

/* ---- Weights (matrix.c) ---- */

typedef struct pl_matrix pl_matrix;
typedef struct pl_weight_arena pl_weight_arena;
/* Room for a model's weights on huge pages; memory is taken when it is filled. NULL: out of memory. */
pl_weight_arena *pl_weight_arena_new(int64_t bytes);
void pl_weight_arena_free(pl_weight_arena *arena);
/* Panels that a file has from byte `offset` on, a multiple of 2 MB: mapped read-only, and shared with all who map them.
 * Bytes that the file loses meanwhile read as zeros and are counted (pages) by pl_weight_arena_lost. NULL: it cannot be mapped. */
pl_weight_arena *pl_weight_arena_map(int file, int64_t offset, int64_t bytes);
int64_t pl_weight_arena_lost(const pl_weight_arena *arena);
/* How many of the blocks [first, end) of PL_SUM_BLOCK bytes have other sums than sums[first …], with all threads of the pool.
 * all 0: of those that are not in memory (a few pages of each are asked for), and so come from the disk now. */
int64_t pl_weight_arena_check(pl_pool *pool, const pl_weight_arena *arena, int64_t first, int64_t end, const uint64_t *sums,
                              int all);
/* The sums of the blocks of data: PL_SUM_BLOCK bytes each, the last one shorter; bytes is a multiple of 64. A change within 8
 * aligned bytes is found in any case, any other one but once in 2^64. */
#define PL_SUM_BLOCK 2097152
void pl_block_sums(pl_pool *pool, const void *data, int64_t bytes, uint64_t *sums);
/* The matrix whose panels begin at byte `offset` of an arena, which lives on with it. NULL: they do not lie in it, or as
 * pl_matrix_new. */
pl_matrix *pl_matrix_view(pl_weight_arena *arena, int64_t offset, int type, int64_t rows, int64_t cols);
/* Added to a type: its matrix multiplies rows of float32 in 16 bits. Columns are a multiple of 32. */
#define PL_INT16_WEIGHTS 64
/* Whether the selected tier multiplies so faster than with 8-bit blocks, and than in float32. */
int pl_prefers_int16(void);
/* Bytes of a panel of 16 rows; 0: as NULL of pl_matrix_new. */
int64_t pl_panel_bytes(int type, int64_t cols);
/* Packs the panels [first, end) of a matrix to dst, otherwise as pl_matrix_new. */
void pl_pack_panels(pl_pool *pool, int type, const void *src, int drop, int64_t rows, int64_t cols, int64_t first, int64_t end,
                    void *dst);
/* Packs a (rows, cols) matrix of `type` into panels with all threads of the pool. src is not needed afterwards; with
 * `drop` it is a file mapping whose pages leave memory as they are packed. The panels lie in `arena`, which lives on with
 * them, or, if it is NULL or full, on their own.
 * NULL: out of memory, an unknown type, or cols no multiple of the type's block. */
pl_matrix *pl_matrix_new(pl_pool *pool, pl_weight_arena *arena, int type, const void *src, int drop, int64_t rows, int64_t cols);
void pl_matrix_free(pl_matrix *matrix);
int64_t pl_matrix_bytes(const pl_matrix *matrix);

/* ---- Experts that stay in their file (exec/expert_memory.c) ---- */

typedef struct pl_expert_memory pl_expert_memory;
/* Memory for some of a model's experts, the others being read when they are needed, `n_readers` parts at a time. files: open
 * for reading, and now this object's own; direct: the same ones past the system's cache (O_DIRECT), or -1. They are (n_files)
 * long. NULL: out of memory; then they are still the caller's. */
pl_expert_memory *pl_expert_memory_new(const int32_t *files, const int32_t *direct, int32_t n_files, int32_t n_readers);
/* Plans that use it keep it. */
void pl_expert_memory_free(pl_expert_memory *memory);
/* A (rows, cols) matrix of `type` that begins at byte `offset` of a file; only products of segments take it, and only while
 * the memory lives. NULL: as pl_matrix_new, or the memory has its room already. */
pl_matrix *pl_expert_memory_add(pl_expert_memory *memory, int32_t file, int64_t offset, int type, int64_t rows, int64_t cols);
/* Once all are added: takes up to `bytes` for them -> what it takes, with the readers' buffers; PL_EINVAL: that is less than
 * pl_expert_memory_least tells; PL_ENOMEM. */
int64_t pl_expert_memory_start(pl_expert_memory *memory, int64_t bytes);
int64_t pl_expert_memory_least(const pl_expert_memory *memory);

/* Of all steps so far: matrices that were needed, those of them that lay in memory from earlier uses, bytes read from files,
 * seconds that threads of the pool waited for them together, and the share of guesses about the next layer that came true
 * lately. */
typedef struct {
    int64_t needed, found, bytes_read;
    double waited, right;
} pl_expert_counts;
void pl_expert_memory_counts(pl_expert_memory *memory, pl_expert_counts *counts);
/* Why a read failed since the last call: errno, or 0 when the file had ended, and which file; PL_EINVAL: none did. */
int pl_expert_memory_failure(pl_expert_memory *memory, int32_t *file);

#endif
