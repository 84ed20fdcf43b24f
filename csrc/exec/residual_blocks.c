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

/* Rows lie far apart: what will be read is asked for some tokens before. */
#define MASK_AHEAD 12
#define SINGLES_AHEAD 4
static void ask(const pl_q8 *first, int64_t stride, int token, int n_tokens, int residual_offset)
{
    if (token + MASK_AHEAD < n_tokens)
        __builtin_prefetch(&first[(token + MASK_AHEAD) * stride].residual_mask);
    if (token + SINGLES_AHEAD >= n_tokens)
        return;
    const pl_q8 *a = first + (token + SINGLES_AHEAD) * stride;
    for (unsigned left = a->residual_mask; left; left &= left - 1)
        __builtin_prefetch(&a[__builtin_ctz(left) + residual_offset].scale);
}

/* Puts singles, whose tokens ascend, in the order of their blocks; end[s]: how many there are of block s. */
static void sort_singles(const pl_single *from, int n, int32_t *end, pl_single *to)
{
    int next[PL_CHUNK_BLOCKS], begin = 0;
    for (int s = 0; s < PL_CHUNK_BLOCKS; s++) {
        next[s] = begin;
        begin += end[s];
        end[s] = begin;
    }
    for (int i = 0; i < n; i++)
        to[next[from[i].sub]++] = from[i];
}

/* Whether all of them are singles, which then are gathered. */
static int gather_singles(const pl_q8 *first, int64_t stride, int n_tokens, pl_residual_blocks *out)
{
    static_assert(2 * sizeof(pl_single) <= sizeof(pl_q8),
                  "singles are in the place of blocks, and behind them before they are sorted");
    pl_single *const by_token = (pl_single *)(void *)out->block + n_tokens * PL_CHUNK_BLOCKS, *to = by_token;
    int residual_offset = 0;
    for (int t = 0; t < n_tokens; t++) {
        const pl_q8 *a = first + t * stride;
        ask(first, stride, t, n_tokens, residual_offset);
        for (unsigned left = a->residual_mask; left; left &= left - 1, to++) {
            const int s = __builtin_ctz(left);
            residual_offset = residual_offset ? residual_offset : a[s].residual_offset; /* all rows have the same */
            const pl_q8 *residual = a + s + residual_offset;
            const int k = residual->residual_mask - 1, half = k / 16, code = (int)residual->s;
            if (k < 0)
                return 0;
            *to = (pl_single){
                .scale = residual->scale, .s = residual->s, .token = (uint16_t)t, .sub = (uint8_t)s, .four = (uint8_t)(k / 4)};
            to->q[k % 4] = (int8_t)code;
            to->sum[half] = to->pair_sum[k / 2 % 2] = (int16_t)code;
            out->end[s]++;
        }
    }
    out->are_singles = 1;
    sort_singles(by_token, (int)(to - by_token), out->end, (pl_single *)(void *)out->block);
    return 1;
}

void pl_residual_gather(const pl_q8 *first, int64_t stride, int subs, int n_tokens, pl_residual_blocks *out)
{
    static_assert(PL_RESIDUAL_GROUP <= 256, "a token of a group is a byte");
    uint8_t token[PL_RESIDUAL_GROUP]; /* those that have any */
    int n = 0, count = 0;
    memset(out, 0, sizeof *out);
    if (gather_singles(first, stride, n_tokens, out))
        return;
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
