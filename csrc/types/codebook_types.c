/* Packing of the types that are looked up (IQ1, IQ2, IQ3: indices into a codebook, and signs) and of TQ1_0.
 *
 * A block starts with d[16]; then, for each 32 k of 16 rows ("word": 64 bits, 4 of each row, row 0 lowest):
 *   IQ2_XXS  indices | signs, which carry 4 bits of scale
 *   IQ2_XS   indices | signs, which carry bit 8 of the indices | scales
 *   IQ2_S    indices | signs | bits 8 and 9 of the indices, a word each | scales
 *   IQ3_XXS  indices of groups 0..3, of 4..7 | signs, which carry 4 bits of scale
 *   IQ3_S    indices of groups 0..3, of 4..7 | signs | bit 8 of the indices, two words | a word of scales
 *   IQ1_S    indices | bits 8 to 10, a word each | a word of scales (3 bits) and shifts (bit 3: plus)
 *   IQ1_M    indices | bits 8 to 10, a word each | a word of shifts (1: plus) | scales
 *   indices: 64 bytes, byte 4 r + i is number i of row r, its lowest 8 bits; a word of bits has number i's at 4 r + i
 *   signs:   64 bytes, byte 4 r + j has a bit for each k = 4 g + j of row r, set where that is negative: g = 0, 2, 4, 6 in bits 7
 *            to 4, g = 1, 3, 5, 7 in bits 3 to 0. Where the file keeps 7 signs of 8 (the number of minus signs is even), the
 *            low nibble of byte 4 r + 3, one bit for each eighth sign, carries something else.
 *   scales:  16 bytes, the low nibble for k 0..15, the high one for 16..31 */
#include "api.h"
#include "types/blocks.h"
#include "types/codes.h"
#include "types/quantize.h"
#include "types/type_functions.h"
#include "types/codebook.h"

/* ---- a sub-block -> integers; every index is masked to the size of its table: any bytes are safe ---- */

/* Eight signs stored as seven: the eighth makes the number of minus signs even. */
static unsigned complete_signs(unsigned seven)
{
    unsigned parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return seven | (parity & 1) << 7;
}

/* q[l] = ± entry[l]; bit l of `signs` set means minus. `n` is 4 or 8. */
static void put_signed(int8_t *q, const int8_t *entry, unsigned signs, int n)
{
    for (int l = 0; l < n; l++) {
        int minus = -(int)(signs >> l & 1); /* 0 or all ones: without a branch, so that compilers vectorize it */
        q[l] = (int8_t)((entry[l] ^ minus) - minus);
    }
}

/* d * (1/2 + s) * unit, exact in float32. */
static float half_step_scale(uint16_t d, unsigned s, float unit) { return pl_f16_to_f32(d) * (0.5f + (float)s) * unit; }

int pl_decode_iq2_xxs(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq2_xxs *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ2_XXS);
    if (!book)
        return PL_EINVAL;
    const uint8_t *index = b->qs + 8 * sub;
    uint32_t packed = pl_load_u32(index + 4);
    for (int j = 0; j < 4; j++)
        put_signed(q + 8 * j, book + 8 * index[j], complete_signs(packed >> 7 * j & 127), 8);
    float d = half_step_scale(b->d, packed >> 28, 0.25f);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq2_xs(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq2_xs *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ2_XS);
    if (!book)
        return PL_EINVAL;
    for (int j = 0; j < 4; j++) {
        unsigned packed = b->qs[4 * sub + j];
        put_signed(q + 8 * j, book + 8 * (packed & 511), complete_signs(packed >> 9), 8);
    }
    unsigned s = b->scales[sub];
    pl_decode_scales(scale, min, half_step_scale(b->d, s & 15, 0.25f), half_step_scale(b->d, s >> 4, 0.25f));
    return PL_OK;
}

int pl_decode_iq2_s(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq2_s *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ2_S);
    if (!book)
        return PL_EINVAL;
    for (int j = 0; j < 4; j++) {
        unsigned index = b->qs[4 * sub + j] | (b->qh[sub] >> 2 * j & 3u) << 8;
        put_signed(q + 8 * j, book + 8 * index, b->signs[4 * sub + j], 8);
    }
    unsigned s = b->scales[sub];
    pl_decode_scales(scale, min, half_step_scale(b->d, s & 15, 0.25f), half_step_scale(b->d, s >> 4, 0.25f));
    return PL_OK;
}

int pl_decode_iq3_xxs(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq3_xxs *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ3_XXS);
    if (!book)
        return PL_EINVAL;
    const uint8_t *index = b->qs + 8 * sub;
    uint32_t packed = pl_load_u32(b->scales + 4 * sub);
    for (int k = 0; k < 8; k++) {
        unsigned signs = complete_signs(packed >> 7 * (k / 2) & 127);
        put_signed(q + 4 * k, book + 4 * index[k], signs >> 4 * (k % 2), 4);
    }
    float d = half_step_scale(b->d, packed >> 28, 0.5f);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq3_s(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq3_s *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ3_S);
    if (!book)
        return PL_EINVAL;
    for (int k = 0; k < 8; k++) {
        unsigned index = b->qs[8 * sub + k] | (b->qh[sub] >> k & 1u) << 8;
        unsigned signs = b->signs[4 * sub + k / 2];
        put_signed(q + 4 * k, book + 4 * index, signs >> 4 * (k % 2), 4);
    }
    int s = b->scales[sub / 2] >> 4 * (sub % 2) & 15;
    float d = pl_f16_to_f32(b->d) * (float)(1 + 2 * s);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

/* IQ1 values are scale * (entry ± 1/8); in eighths they are integers. */
static void put_shifted(int8_t *q, const int8_t *entry, int minus)
{
    for (int l = 0; l < 8; l++)
        q[l] = (int8_t)(8 * entry[l] + (minus ? -1 : 1));
}

static float eighths_scale(uint16_t d, unsigned s) { return pl_f16_to_f32(d) * (float)(2 * s + 1) * 0.125f; }

int pl_decode_iq1_s(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq1_s *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ1_S);
    if (!book)
        return PL_EINVAL;
    unsigned high = b->qh[sub];
    for (int j = 0; j < 4; j++) {
        unsigned index = b->qs[4 * sub + j] | (high >> 3 * j & 7) << 8;
        put_shifted(q + 8 * j, book + 8 * index, (high & 0x8000) != 0);
    }
    float d = eighths_scale(b->d, high >> 12 & 7);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq1_m(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq1_m *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ1_M);
    if (!book)
        return PL_EINVAL;
    for (int j = 0; j < 4; j++) {
        unsigned high = b->qh[2 * sub + j / 2] >> 4 * (j % 2) & 15u;
        unsigned index = b->qs[4 * sub + j] | (high & 7) << 8;
        put_shifted(q + 8 * j, book + 8 * index, (high & 8) != 0);
    }
    uint16_t d = 0;
    for (int i = 0; i < 4; i++)
        d = (uint16_t)(d | b->scales[i] >> 12 << 4 * i);
    unsigned s = (unsigned)b->scales[sub / 2] >> 6 * (sub % 2); /* two scales of 3 bits */
    pl_decode_scales(scale, min, eighths_scale(d, s & 7), eighths_scale(d, s >> 3 & 7));
    return PL_OK;
}

/* ---- a block of 16 rows -> a panel block ---- */

/* Where the panel has the signs of a word of 32: bit 8 i + 4 h + j goes to bit 7 - 4 h - i of byte j. */
static void arrange_signs(pl_row_words w)
{
    pl_swap_bits(w, 14, 0x0000ccccu);
    pl_swap_bits(w, 7, 0x00aa00aau);
    pl_swap_bits(w, 1, 0x55555555u); /* and the bytes' bits in reverse */
    pl_swap_bits(w, 2, 0x33333333u);
    pl_swap_bits(w, 4, 0x0f0f0f0fu);
}

/* Words of four times seven signs, in the lowest bits of the bytes, and 4 bits of something else each. */
static void put_sevens(pl_row_words signs, const pl_row_words nibbles, uint8_t *dst)
{
    arrange_signs(signs);
    for (int q = 0; q < PL_FOURS; q++)
        signs[q] = (signs[q] & 0xf0ffffffu) | nibbles[q] << 24;
    memcpy(dst, signs, sizeof(pl_row_words));
}

/* The same where they lie side by side, the 4 bits above them. */
static void put_packed_sevens(const pl_row_words w, uint8_t *dst)
{
    pl_row_words signs, nibbles;
    for (int q = 0; q < PL_FOURS; q++) {
        signs[q] = (w[q] & 0x7fu) | (w[q] & 0x3f80u) << 1 | (w[q] & 0x1fc000u) << 2 | (w[q] & 0xfe00000u) << 3;
        nibbles[q] = w[q] >> 28;
    }
    put_sevens(signs, nibbles, dst);
}

static void put_signs(pl_row_words w, uint8_t *dst)
{
    arrange_signs(w);
    memcpy(dst, w, sizeof(pl_row_words));
}

static void pack_iq2_xxs(const pl_block_iq2_xxs *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[16];
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 16, w);
    for (int s = 0; s < 8; s++) {
        memcpy(dst + 32 + 128 * s, w + 2 * s, 64);
        put_packed_sevens(w[2 * s + 1], dst + 32 + 128 * s + 64);
    }
}
PL_PACK_PANEL(IQ2_XXS, iq2_xxs, 0)

static void pack_iq2_xs(const pl_block_iq2_xs *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[18], indices, signs, high; /* 16 words of indices and signs, scales */
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 18, w);
    for (int s = 0; s < 8; s++) {
        const pl_rows4 *first = w[2 * s], *last = w[2 * s + 1];
        for (int q = 0; q < PL_FOURS; q++) {
            pl_rows4 a = first[q], c = last[q]; /* twice 9 bits of index, 7 of signs */
            indices[q] = (a & 0xffu) | (a >> 8 & 0xff00u) | (c & 0xffu) << 16 | (c << 8 & 0xff000000u);
            signs[q] = (a >> 9 & 0x7fu) | (a >> 17 & 0x7f00u) | (c << 7 & 0x7f0000u) | (c >> 1 & 0x7f000000u);
            high[q] = (a >> 8 & 1u) | (a >> 23 & 2u) | (c >> 6 & 4u) | (c >> 21 & 8u);
        }
        memcpy(dst + 32 + 144 * s, indices, sizeof indices);
        put_sevens(signs, high, dst + 32 + 144 * s + 64);
    }
    pl_put_bytes(w[16], dst + 32 + 128, 144);
    pl_put_bytes(w[17], dst + 32 + 4 * 144 + 128, 144);
}
PL_PACK_PANEL(IQ2_XS, iq2_xs, 0)

static void pack_iq2_s(const pl_block_iq2_s *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[20]; /* indices, signs, their high bits, scales: 8, 8, 2 and 2 words */
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 20, w);
    for (int s = 0; s < 8; s++) {
        memcpy(dst + 32 + 160 * s, w + s, 64);
        put_signs(w[8 + s], dst + 32 + 160 * s + 64);
    }
    for (int i = 0; i < 2; i++) { /* four sub-blocks */
        uint8_t *sub = dst + 32 + 160 * 4 * i;
        pl_swap_bits(w[16 + i], 1, 0x22222222u); /* bits 8 of four indices, then bits 9 */
        pl_swap_bits(w[16 + i], 2, 0x0c0c0c0cu);
        pl_put_nibbles(w[16 + i], sub + 128, 8, 160);
        pl_put_bytes(w[18 + i], sub + 144, 160);
    }
}
PL_PACK_PANEL(IQ2_S, iq2_s, 0)

static void pack_iq3_xxs(const pl_block_iq3_xxs *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[24]; /* indices, then signs */
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 24, w);
    for (int s = 0; s < 8; s++) {
        memcpy(dst + 32 + 192 * s, w + 2 * s, 128);
        put_packed_sevens(w[16 + s], dst + 32 + 192 * s + 128);
    }
}
PL_PACK_PANEL(IQ3_XXS, iq3_xxs, 0)

static void pack_iq3_s(const pl_block_iq3_s *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[27]; /* indices, their high bits, signs, scales: 16, 2, 8 and 1 words */
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 27, w);
    for (int s = 0; s < 8; s++) {
        memcpy(dst + 32 + 216 * s, w + 2 * s, 128);
        put_signs(w[18 + s], dst + 32 + 216 * s + 128);
    }
    pl_put_nibbles(w[16], dst + 32 + 192, 8, 216);
    pl_put_nibbles(w[17], dst + 32 + 4 * 216 + 192, 8, 216);
    pl_put_nibbles(w[26], dst + 32 + 208, 216, 2 * 216);
}
PL_PACK_PANEL(IQ3_S, iq3_s, 0)

/* Indices of two sub-blocks and, from four nibbles of each in a word, the words of bits. */
static void put_indices1(const pl_row_words indices[2], const pl_row_words nibbles, uint8_t *dst, int64_t step)
{
    uint8_t bits[8 * 8];
    pl_put_nibbles(nibbles, bits, 8, 16);
    for (int i = 0; i < 2; i++) {
        memcpy(dst + step * i, indices + i, 64);
        memcpy(dst + step * i + 64, bits + 32 * i, 32);
    }
}

static void pack_iq1_s(const pl_block_iq1_s *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[12]; /* indices; high bits and scales of two sub-blocks in a word */
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 12, w);
    for (int s = 0; s < 8; s += 2) {
        pl_row_words nibbles;
        for (int q = 0; q < PL_FOURS; q++) {
            pl_rows4 high = w[8 + s / 2][q];
            nibbles[q] = (high & 0xf000f000u) ^ 0x80008000u; /* the shift's bit: plus */
            for (int i = 0; i < 12; i++) /* bit i % 3 of number i / 3 */
                nibbles[q] |= (high >> i & 0x00010001u) << (i % 3 * 4 + i / 3);
        }
        put_indices1(w + s, nibbles, dst + 32 + 96 * s, 96);
    }
}
PL_PACK_PANEL(IQ1_S, iq1_s, .qh = {0x8000, 0x8000, 0x8000, 0x8000, 0x8000, 0x8000, 0x8000, 0x8000})

static void pack_iq1_m(const pl_block_iq1_m *b, int64_t stride, uint8_t *dst)
{
    uint8_t unused[32];
    pl_row_words w[14], d; /* indices, high bits and shifts, scales: 8, 4 and 2 words */
    pl_take_words(b->qs, stride, 14, w);
    for (int q = 0; q < PL_FOURS; q++)
        d[q] = (w[12][q] >> 12 & 0xfu) | (w[12][q] >> 24 & 0xf0u) | (w[13][q] >> 4 & 0xf00u) | (w[13][q] >> 16 & 0xf000u);
    pl_put_halves(d, dst, unused);
    for (int s = 0; s < 8; s += 2) {
        pl_rows4 *nibbles = w[8 + s / 2];
        pl_swap_bits(nibbles, 6, 0x00cc00ccu); /* bit i of nibble j becomes bit j of nibble i */
        pl_swap_bits(nibbles, 3, 0x0a0a0a0au);
        for (int q = 0; q < PL_FOURS; q++)
            nibbles[q] ^= 0xf000f000u;
        put_indices1(w + s, nibbles, dst + 32 + 112 * s, 112);
    }
    for (int i = 0; i < 2; i++) {
        pl_row_words scales;
        for (int q = 0; q < PL_FOURS; q++) { /* 3 bits each */
            pl_rows4 two = w[12 + i][q];
            scales[q] = (two & 0x00070007u) | (two << 1 & 0x00700070u) | (two << 2 & 0x07000700u) | (two << 3 & 0x70007000u);
        }
        pl_put_bytes(scales, dst + 32 + 4 * 112 * i + 96, 112);
    }
}
PL_PACK_PANEL(IQ1_M, iq1_m,
              .qh = {0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88, 0x88})
