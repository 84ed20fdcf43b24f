/* The second blocks of activations (pl_q8), gathered for products of several tokens: those of a chunk of 256 k and a group of
 * neighbouring tokens lie side by side, block by block of the chunk, so that a tile takes several of them at once. Measured on
 * AVX-512 with 256 tokens and 8 % second blocks (the inputs of a 1B model's ffn_down), Q4_K, Gop/s of a thread: none 800,
 * gathered 690; token by token 625, and the same when each product gathers them itself (noting them takes 8 %, reading them
 * where they lie 7). */
#ifndef PL_SECOND_BLOCKS_H
#define PL_SECOND_BLOCKS_H
#include "kernels/kernels.h"

#define PL_GROUP (PL_TOKENS / 2) /* tokens of a group; those of a few tokens are as small as the walk's steps */
#define PL_FEW_GROUP 8

typedef struct {
    int32_t end[PL_CHUNK_BLOCKS]; /* those of block s of the chunk are block[end[s - 1]] ... block[end[s] - 1] */
    int32_t unused[8];
    pl_q8 block[]; /* `rest`: the token, counted from the group's first; `seconds`: s. PL_SECOND_PAD empty ones follow */
} pl_second_blocks;

#define PL_SECOND_PAD 8 /* so that tiles may read on */

/* Tokens of a group in a product of `n_tokens`. */
static inline int pl_second_group(int64_t n_tokens) { return n_tokens <= PL_FEW ? PL_FEW_GROUP : PL_GROUP; }
/* Bytes of one chunk of one group of `tokens`, at the most. */
int64_t pl_second_bytes(int tokens);
/* Chunk `chunk` of group `group`, of rows of `n_blocks` blocks: where its second blocks are. */
pl_second_blocks *pl_second_at(uint8_t *seconds, int tokens, int64_t n_blocks, int64_t group, int64_t chunk);
/* Gathers those of `n_tokens` tokens, whose chunks of `subs` blocks begin `stride` blocks apart from `first`. */
void pl_second_gather(const pl_q8 *first, int64_t stride, int subs, int n_tokens, pl_second_blocks *out);

#endif
