#include "exec/residual_blocks.h"
#include <assert.h>
#include <string.h>

int64_t pl_residual_bytes(int tokens)
{
    int64_t bytes = (int64_t)sizeof(pl_residual_blocks) + (tokens * PL_CHUNK_BLOCKS + PL_RESIDUAL_PAD) * (int64_t)sizeof(pl_q8);
    return (bytes + 63) / 64 * 64;
}

pl_residual_blocks *pl_residual_at(uint8_t *residual_blocks, int tokens, int64_t n_blocks, int64_t group, int64_t chunk)
{
    int64_t chunks = (n_blocks + PL_CHUNK_BLOCKS - 1) / PL_CHUNK_BLOCKS;
    return (pl_residual_blocks *)(void *)(residual_blocks + (group * chunks + chunk) * pl_residual_bytes(tokens));
}

void pl_residual_gather(const pl_q8 *first, int64_t stride, int subs, int n_tokens, pl_residual_blocks *out)
{
    static_assert(PL_RESIDUAL_GROUP <= 256, "a token of a group is a byte");
    uint8_t token[PL_RESIDUAL_GROUP]; /* those that have any */
    int n = 0, count = 0;
    for (int t = 0; t < n_tokens; t++) {
        token[n] = (uint8_t)t;
        n += first[t * stride].residual_mask != 0;
    }
    for (int s = 0; s < PL_CHUNK_BLOCKS; s++) {
        for (int i = 0; i < n && s < subs; i++) {
            const pl_q8 *a = first + token[i] * stride + s;
            if (a->residual_offset == 0)
                continue;
            out->block[count] = a[a->residual_offset];
            out->block[count].residual_mask = (uint8_t)s;
            out->block[count++].residual_offset = token[i];
        }
        out->end[s] = count;
    }
    memset(out->block + count, 0, PL_RESIDUAL_PAD * sizeof(pl_q8));
}
