#ifndef PL_ROW_WORDS_H
#define PL_ROW_WORDS_H
/* What the blocks of 16 rows are packed into a panel (panel.h) with. 4 bytes of each row come side by side as the vectors that
 * every CPU has, of 4 rows; what a type's layout asks for is done to such words; then they, or their halves, bytes or nibbles, are
 * put where the panel has them. */
#include "types/panel.h"
#include <string.h>

#define PL_FOURS (PL_ROWS / 4)
typedef uint32_t pl_rows4 __attribute__((vector_size(16))); /* 4 bytes of 4 rows */
typedef pl_rows4 pl_row_words[PL_FOURS];                    /* and of 16 */
typedef uint16_t pl_halves8 __attribute__((vector_size(16)));
typedef uint8_t pl_bytes16 __attribute__((vector_size(16)));

/* Lanes of a (from 0 on) and of b (those that follow). */
#if defined(__clang__) || __GNUC__ >= 12
#define PL_PICK(TYPE, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define PL_PICK(TYPE, a, b, ...) __builtin_shuffle(a, b, (TYPE){__VA_ARGS__})
#endif

static inline pl_rows4 pl_even4(pl_rows4 a, pl_rows4 b) { return PL_PICK(pl_rows4, a, b, 0, 2, 4, 6); }
static inline pl_rows4 pl_odd4(pl_rows4 a, pl_rows4 b) { return PL_PICK(pl_rows4, a, b, 1, 3, 5, 7); }
static inline pl_halves8 pl_even8(pl_halves8 a, pl_halves8 b) { return PL_PICK(pl_halves8, a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
static inline pl_halves8 pl_odd8(pl_halves8 a, pl_halves8 b) { return PL_PICK(pl_halves8, a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
static inline pl_bytes16 pl_even16(pl_bytes16 a, pl_bytes16 b)
{
    return PL_PICK(pl_bytes16, a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
static inline pl_bytes16 pl_odd16(pl_bytes16 a, pl_bytes16 b)
{
    return PL_PICK(pl_bytes16, a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}

/* ---- bits ---- */

/* Exchanges the bits of b at `mask` with those of a that lie `distance` further up. */
static inline void pl_exchange(pl_rows4 *a, pl_rows4 *b, int distance, uint32_t mask)
{
    pl_rows4 differ = (*a >> distance ^ *b) & mask;
    *a ^= differ << distance;
    *b ^= differ;
}

/* Exchanges the bits of words at `mask` with those `distance` further up. The bits' numbers: where distance is 2^m - 2^n and the
 * mask those with n and without m, the two change places. */
static inline void pl_swap_bits(pl_row_words w, int distance, uint32_t mask)
{
    for (int i = 0; i < PL_FOURS; i++) {
        pl_rows4 differ = (w[i] >> distance ^ w[i]) & mask;
        w[i] ^= differ | differ << distance;
    }
}

/* Bytes below 64, less 32 each. */
static inline pl_rows4 pl_minus_32(pl_rows4 bytes)
{
    pl_rows4 less = bytes ^ 0x20202020u, negative = less & 0x20202020u;
    return less | negative << 1 | negative << 2;
}

/* ---- from 16 rows, row r at src + r * stride ---- */

/* 16 bytes of each row: four words. */
static inline void pl_take_4_words(const uint8_t *src, int64_t stride, uint8_t *words)
{
    for (int i = 0; i < PL_FOURS; i++, src += 4 * stride, words += 16) {
        pl_rows4 row[4];
        for (int r = 0; r < 4; r++)
            memcpy(&row[r], src + r * stride, 16);
        pl_rows4 even01 = pl_even4(row[0], row[1]), odd01 = pl_odd4(row[0], row[1]), even23 = pl_even4(row[2], row[3]),
                 odd23 = pl_odd4(row[2], row[3]);
        pl_rows4 word[4] = {pl_even4(even01, even23), pl_even4(odd01, odd23), pl_odd4(even01, even23), pl_odd4(odd01, odd23)};
        for (int w = 0; w < 4; w++)
            memcpy(words + 64 * w, &word[w], 16);
    }
}

/* 4 n bytes of each row. words: pl_row_words[n], or n * 64 bytes of a panel. */
static inline void pl_take_words(const void *src, int64_t stride, int n, void *words)
{
    const uint8_t *bytes = src;
    uint8_t *w = words;
    for (int i = 0; i < n / 4; i++)
        pl_take_4_words(bytes + 16 * i, stride, w + 4 * 64 * i);
    for (int i = n / 4 * 4; i < n; i++)
        for (int r = 0; r < PL_ROWS; r++)
            memcpy(w + 64 * i + 4 * r, bytes + r * stride + 4 * i, 4);
}

/* 2 bytes of each row: 32 bytes. */
static inline void pl_take_halves(const void *src, int64_t stride, uint8_t *dst)
{
    for (int r = 0; r < PL_ROWS; r++)
        memcpy(dst + 2 * r, (const uint8_t *)src + r * stride, 2);
}

/* ---- into a panel ---- */

/* The lower half of a word and the upper one: 32 bytes each. */
static inline void pl_put_halves(const pl_row_words w, uint8_t *low, uint8_t *high)
{
    for (int i = 0; i < PL_FOURS / 2; i++) {
        pl_halves8 a = (pl_halves8)w[2 * i], b = (pl_halves8)w[2 * i + 1], even = pl_even8(a, b), odd = pl_odd8(a, b);
        memcpy(low + 16 * i, &even, 16);
        memcpy(high + 16 * i, &odd, 16);
    }
}

/* The four bytes of a word, 16 bytes each, `step` apart. */
static inline void pl_put_bytes(const pl_row_words w, uint8_t *dst, int64_t step)
{
    pl_bytes16 a = (pl_bytes16)w[0], b = (pl_bytes16)w[1], c = (pl_bytes16)w[2], d = (pl_bytes16)w[3];
    pl_bytes16 even[2] = {pl_even16(a, b), pl_even16(c, d)}, odd[2] = {pl_odd16(a, b), pl_odd16(c, d)};
    pl_bytes16 byte[4] = {pl_even16(even[0], even[1]), pl_even16(odd[0], odd[1]), pl_odd16(even[0], even[1]),
                          pl_odd16(odd[0], odd[1])};
    for (int j = 0; j < 4; j++)
        memcpy(dst + step * j, &byte[j], 16);
}

/* The eight nibbles of a word, 8 bytes each, whose nibble r is row r's: a byte's low and high one are `high` apart, bytes `step`. */
static inline void pl_put_nibbles(const pl_row_words w, uint8_t *dst, int64_t high, int64_t step)
{
    pl_row_words two; /* rows' low nibbles side by side in bytes, then their high ones */
    uint8_t bytes[4][16];
    for (int i = 0; i < PL_FOURS / 2; i++) {
        pl_rows4 *low = &two[i], *high = &two[PL_FOURS / 2 + i];
        *low = pl_even4(w[2 * i], w[2 * i + 1]);
        *high = pl_odd4(w[2 * i], w[2 * i + 1]);
        pl_exchange(low, high, 4, 0x0f0f0f0fu);
    }
    pl_put_bytes(two, bytes[0], 16);
    for (int j = 0; j < 4; j++) {
        memcpy(dst + step * j, bytes[j], 8);
        memcpy(dst + step * j + high, bytes[j] + 8, 8);
    }
}

/* ---- codes: 32 bytes of each row, for sub-blocks of 32 k that are `step` apart in the panel ---- */

/* The low nibbles are those of one sub-block, the high ones those of another. */
static inline void pl_pack_codes4(const uint8_t *src, int64_t stride, uint8_t *dst, int64_t step)
{
    pl_row_words w[8];
    pl_take_words(src, stride, 8, w);
    for (int v = 0; v < 4; v++)
        for (int i = 0; i < PL_FOURS; i++) {
            pl_rows4 low = w[v][i], high = w[v + 4][i];
            pl_exchange(&low, &high, 4, 0x0f0f0f0fu);
            memcpy(dst + 64 * v + 16 * i, &low, 16);
            memcpy(dst + step + 64 * v + 16 * i, &high, 16);
        }
}

/* The lowest two bits are those of one sub-block, the next two those of the next one, and so on. */
static inline void pl_pack_codes2(const uint8_t *src, int64_t stride, uint8_t *dst, int64_t step)
{
    pl_row_words w[8];
    pl_take_words(src, stride, 8, w);
    for (int h = 0; h < 2; h++)
        for (int i = 0; i < PL_FOURS; i++) {
            pl_rows4 codes[4] = {w[h][i], w[2 + h][i], w[4 + h][i], w[6 + h][i]};
            pl_exchange(&codes[0], &codes[1], 2, 0x33333333u); /* pairs s of bits of words f become pairs f of words s */
            pl_exchange(&codes[2], &codes[3], 2, 0x33333333u);
            pl_exchange(&codes[0], &codes[2], 4, 0x0f0f0f0fu);
            pl_exchange(&codes[1], &codes[3], 4, 0x0f0f0f0fu);
            for (int s = 0; s < 4; s++)
                memcpy(dst + step * s + 64 * h + 16 * i, &codes[s], 16);
        }
}

/* Bit s is that of sub-block s. */
static inline void pl_pack_bits(const uint8_t *src, int64_t stride, uint8_t *dst, int64_t step)
{
    pl_row_words w[8];
    pl_take_words(src, stride, 8, w);
    for (int g = 0; g < 8; g++) { /* bit s of byte j becomes bit j of nibble s: number (j, s) becomes (s, j) */
        pl_swap_bits(w[g], 12, 0x0000f0f0u);
        pl_swap_bits(w[g], 6, 0x00cc00ccu);
        pl_swap_bits(w[g], 3, 0x0a0a0a0au);
        pl_swap_bits(w[g], 1, 0x22222222u);
        pl_put_nibbles(w[g], dst + 8 * g, step, 2 * step);
    }
}

/* Asks for what is needed soon, into the second cache: in the first one it would take the room of what is read now. */
static inline void pl_prefetch(const uint8_t *p, int64_t bytes)
{
    for (int64_t i = 0; i < bytes; i += 64)
        __builtin_prefetch(p + i, 0, 2);
}

#endif
