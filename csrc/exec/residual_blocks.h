/* The residual blocks of activations (pl_q8), gathered for products of several tokens: those of a chunk of 256 k and a group of
 * neighbouring tokens lie side by side, block by block of the chunk, so that a tile takes several of them at once, and products of
 * single values load once what those of a block share. */
#ifndef PL_RESIDUAL_BLOCKS_H
#define PL_RESIDUAL_BLOCKS_H
#include "kernels/kernels.h"

#define PL_RESIDUAL_GROUP (PL_TOKENS / 2) /* tokens of a group; those of small batches are as small as the kernel's steps */
#define PL_RESIDUAL_GROUP_SMALL 8

/* A residual block with a single code that is not 0, that of one value: what products need of it. */
typedef struct {
    int8_t q[4]; /* the 4 k that it is one of */
    float scale, s;
    int16_t sum[2], pair_sum[2]; /* as in pl_q8; pair_sum of its half */
    uint16_t token;              /* counted from the group's first */
    uint8_t sub, four;           /* its block of the chunk, and which 4 of that block's k */
} pl_single;

typedef struct {
    int32_t end[PL_CHUNK_BLOCKS]; /* those of block s of the chunk are number end[s - 1] ... end[s] - 1 */
    int32_t are_singles;          /* all of them, which then are in the place of blocks (pl_singles) */
    int32_t unused[7];
    pl_q8 block[]; /* residual_offset: the token; residual_mask: s. PL_RESIDUAL_PAD empty ones follow */
} pl_residual_blocks;
static inline const pl_single *pl_singles(const pl_residual_blocks *blocks)
{
    return (const pl_single *)(const void *)blocks->block;
}

#define PL_RESIDUAL_PAD 8 /* so that tiles may read on */

/* Tokens of a group in a product of `n_tokens`. */
static inline int pl_residual_group(int64_t n_tokens)
{
    return n_tokens <= PL_SMALL_BATCH ? PL_RESIDUAL_GROUP_SMALL : PL_RESIDUAL_GROUP;
}
/* Bytes of one chunk of one group of `tokens`, at the most. */
int64_t pl_residual_bytes(int tokens);
/* Chunk `chunk` of group `group`, of rows of `n_blocks` blocks: where its residual blocks are. */
pl_residual_blocks *pl_residual_at(uint8_t *residual_blocks, int tokens, int64_t n_blocks, int64_t group, int64_t chunk);
/* Gathers those of `n_tokens` tokens, whose chunks of `subs` blocks begin `stride` blocks apart from `first`. */
void pl_residual_gather(const pl_q8 *first, int64_t stride, int subs, int n_tokens, pl_residual_blocks *out);

#endif
