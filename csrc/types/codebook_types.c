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

/* ---- row r of a block -> a panel block ---- */

/* Bit j of a nibble in bit 0 of byte j. */
static uint32_t bits_in_bytes(unsigned nibble) { return nibble * 0x00204081u & 0x01010101u; }

/* The 4 bytes of a row's signs; bit k of `signs`: k is negative. */
static void put_signs(uint8_t *dst, uint32_t signs)
{
    uint32_t bytes = 0;
    for (int i = 0; i < 4; i++)
        bytes |= (bits_in_bytes(signs >> 8 * i & 15) << 7 | bits_in_bytes(signs >> (8 * i + 4) & 15) << 3) >> i;
    memcpy(dst, &bytes, 4);
}

/* The same of four times seven signs, 7 bits each, and a nibble in the place of the eighth ones. */
static void put_sevens(uint8_t *dst, uint32_t sevens, unsigned nibble)
{
    uint32_t signs = 0;
    for (int i = 0; i < 4; i++)
        signs |= (sevens >> (7 * i) & 127) << (8 * i);
    put_signs(dst, signs);
    dst[3] = (uint8_t)((dst[3] & 0xf0) | nibble);
}

static void put_iq2_xxs(const pl_block_iq2_xxs *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 128 * s;
        uint32_t packed = pl_load_u32(b->qs + 8 * s + 4);
        memcpy(sub + 4 * r, b->qs + 8 * s, 4);
        put_sevens(sub + 64 + 4 * r, packed, packed >> 28);
    }
}
PL_PACK_PANEL(IQ2_XXS, iq2_xxs)

static void put_iq2_xs(const pl_block_iq2_xs *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 144 * s;
        uint32_t sevens = 0;
        unsigned high = 0;
        for (int i = 0; i < 4; i++) {
            unsigned packed = b->qs[4 * s + i];
            sub[4 * r + i] = (uint8_t)packed;
            high |= (packed >> 8 & 1) << i;
            sevens |= (uint32_t)(packed >> 9) << (7 * i);
        }
        put_sevens(sub + 64 + 4 * r, sevens, high);
        sub[128 + r] = b->scales[s];
    }
}
PL_PACK_PANEL(IQ2_XS, iq2_xs)

static void put_iq2_s(const pl_block_iq2_s *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 160 * s;
        unsigned high[2] = {0, 0};
        for (int i = 0; i < 4; i++)
            for (int bit = 0; bit < 2; bit++)
                high[bit] |= (unsigned)(b->qh[s] >> (2 * i + bit) & 1) << i;
        memcpy(sub + 4 * r, b->qs + 4 * s, 4);
        put_signs(sub + 64 + 4 * r, pl_load_u32(b->signs + 4 * s));
        pl_put_nibble(sub + 128, r, high[0]);
        pl_put_nibble(sub + 136, r, high[1]);
        sub[144 + r] = b->scales[s];
    }
}
PL_PACK_PANEL(IQ2_S, iq2_s)

static void put_indices3(uint8_t *sub, int r, const uint8_t *q) /* 8 numbers */
{
    memcpy(sub + 4 * r, q, 4);
    memcpy(sub + 64 + 4 * r, q + 4, 4);
}

static void put_iq3_xxs(const pl_block_iq3_xxs *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 192 * s;
        put_indices3(sub, r, b->qs + 8 * s);
        put_sevens(sub + 128 + 4 * r, pl_load_u32(b->scales + 4 * s), pl_load_u32(b->scales + 4 * s) >> 28);
    }
}
PL_PACK_PANEL(IQ3_XXS, iq3_xxs)

static void put_iq3_s(const pl_block_iq3_s *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 216 * s;
        put_indices3(sub, r, b->qs + 8 * s);
        put_signs(sub + 128 + 4 * r, pl_load_u32(b->signs + 4 * s));
        pl_put_nibble(sub + 192, r, b->qh[s]);
        pl_put_nibble(sub + 200, r, b->qh[s] >> 4);
        pl_put_nibble(sub + 208, r, b->scales[s / 2] >> (4 * (s % 2)));
    }
}
PL_PACK_PANEL(IQ3_S, iq3_s)

/* high: 4 bits for each of four numbers, their bits 8, 9 and 10, and 11 for the shift. -> the shifts that are plus. */
static unsigned put_indices1(uint8_t *sub, int r, const uint8_t *q, unsigned high)
{
    unsigned bits[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++)
        for (int bit = 0; bit < 4; bit++)
            bits[bit] |= (high >> (4 * i + bit) & 1) << i;
    memcpy(sub + 4 * r, q, 4);
    for (int bit = 0; bit < 3; bit++)
        pl_put_nibble(sub + 64 + 8 * bit, r, bits[bit]);
    return ~bits[3] & 15;
}

static void put_iq1_s(const pl_block_iq1_s *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 96 * s;
        unsigned qh = b->qh[s], high = 0;
        for (int i = 0; i < 4; i++)
            high |= (qh >> (3 * i) & 7) << (4 * i);
        put_indices1(sub, r, b->qs + 4 * s, high);
        pl_put_nibble(sub + 88, r, (qh >> 12 & 7) | (qh & 0x8000 ? 0 : 8));
    }
}
PL_PACK_PANEL(IQ1_S, iq1_s)

static void put_iq1_m(const pl_block_iq1_m *b, int r, uint8_t *dst)
{
    unsigned d = 0;
    for (int i = 0; i < 4; i++)
        d |= (unsigned)(b->scales[i] >> 12) << (4 * i);
    pl_put16(dst, r, (uint16_t)d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 112 * s;
        unsigned two = (unsigned)b->scales[s / 2] >> (6 * (s % 2));
        unsigned high = b->qh[2 * s] | (unsigned)b->qh[2 * s + 1] << 8;
        pl_put_nibble(sub + 88, r, put_indices1(sub, r, b->qs + 4 * s, high));
        sub[96 + r] = (uint8_t)((two & 7) | (two >> 3 & 7) << 4);
    }
}
PL_PACK_PANEL(IQ1_M, iq1_m)
