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
 *   signs:   8 words, bit 4 r + j of word g is set where k = 4 g + j of row r is negative. Where the file keeps 7 signs of 8
 *            (the number of minus signs is even), bit 3 of the odd words, one for each i = 0..3, carries something else.
 *   scales:  16 bytes, the low nibble for k 0..15, the high one for 16..31 */
#include "api.h"
#include "types/blocks.h"
#include "types/pack.h"
#include "types/panel.h"

static void put16(uint8_t *at, int r, uint16_t value) { memcpy(at + 2 * r, &value, 2); }

/* Bit i of `bits` goes where the last of signs 8 i … 8 i + 7 would be. */
static uint32_t in_place_of_last_signs(unsigned bits)
{
    uint32_t spread = 0;
    for (int i = 0; i < 4; i++)
        spread |= (uint32_t)(bits >> i & 1) << (8 * i + 7);
    return spread;
}
static uint32_t load_u32(const uint8_t *p) { return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24; }

/* Four times seven signs (28 bits) and the 4 bits of scale above them, as signs of panels. */
static uint32_t signs_and_scale(uint32_t packed)
{
    uint32_t signs = in_place_of_last_signs(packed >> 28);
    for (int i = 0; i < 4; i++)
        signs |= (packed >> (7 * i) & 127) << (8 * i);
    return signs;
}

static void pack_iq2_xxs(const pl_block_iq2_xxs *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 128 * s;
        memcpy(sub + 4 * r, b->qs + 8 * s, 4);
        pl_put_bits(sub + 64, r, signs_and_scale(load_u32(b->qs + 8 * s + 4)));
    }
}

static void pack_iq2_xs(const pl_block_iq2_xs *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 144 * s;
        uint32_t signs = 0;
        unsigned high = 0;
        for (int i = 0; i < 4; i++) {
            unsigned packed = b->qs[4 * s + i];
            sub[4 * r + i] = (uint8_t)packed;
            high |= (packed >> 8 & 1) << i;
            signs |= (uint32_t)(packed >> 9) << (8 * i);
        }
        pl_put_bits(sub + 64, r, signs | in_place_of_last_signs(high));
        sub[128 + r] = b->scales[s];
    }
}

static void pack_iq2_s(const pl_block_iq2_s *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 160 * s;
        unsigned high[2] = {0, 0};
        for (int i = 0; i < 4; i++)
            for (int bit = 0; bit < 2; bit++)
                high[bit] |= (unsigned)(b->qh[s] >> (2 * i + bit) & 1) << i;
        memcpy(sub + 4 * r, b->qs + 4 * s, 4);
        pl_put_bits(sub + 64, r, load_u32(b->signs + 4 * s));
        pl_put_nibble(sub + 128, r, high[0]);
        pl_put_nibble(sub + 136, r, high[1]);
        sub[144 + r] = b->scales[s];
    }
}

static void put_indices3(uint8_t *sub, int r, const uint8_t *q) /* 8 numbers */
{
    memcpy(sub + 4 * r, q, 4);
    memcpy(sub + 64 + 4 * r, q + 4, 4);
}

static void pack_iq3_xxs(const pl_block_iq3_xxs *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 192 * s;
        put_indices3(sub, r, b->qs + 8 * s);
        pl_put_bits(sub + 128, r, signs_and_scale(load_u32(b->scales + 4 * s)));
    }
}

static void pack_iq3_s(const pl_block_iq3_s *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 216 * s;
        put_indices3(sub, r, b->qs + 8 * s);
        pl_put_bits(sub + 128, r, load_u32(b->signs + 4 * s));
        pl_put_nibble(sub + 192, r, b->qh[s]);
        pl_put_nibble(sub + 200, r, b->qh[s] >> 4);
        pl_put_nibble(sub + 208, r, b->scales[s / 2] >> (4 * (s % 2)));
    }
}

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

static void pack_iq1_s(const pl_block_iq1_s *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 96 * s;
        unsigned qh = b->qh[s], high = 0;
        for (int i = 0; i < 4; i++)
            high |= (qh >> (3 * i) & 7) << (4 * i);
        put_indices1(sub, r, b->qs + 4 * s, high);
        pl_put_nibble(sub + 88, r, (qh >> 12 & 7) | (qh & 0x8000 ? 0 : 8));
    }
}

static void pack_iq1_m(const pl_block_iq1_m *b, int r, uint8_t *dst)
{
    unsigned d = 0;
    for (int i = 0; i < 4; i++)
        d |= (unsigned)(b->scales[i] >> 12) << (4 * i);
    put16(dst, r, (uint16_t)d);
    for (int s = 0; s < 8; s++) {
        uint8_t *sub = dst + 32 + 112 * s;
        unsigned two = (unsigned)b->scales[s / 2] >> (6 * (s % 2));
        unsigned high = b->qh[2 * s] | (unsigned)b->qh[2 * s + 1] << 8;
        pl_put_nibble(sub + 88, r, put_indices1(sub, r, b->qs + 4 * s, high));
        sub[96 + r] = (uint8_t)((two & 7) | (two >> 3 & 7) << 4);
    }
}

/* TQ1_0: d[16], then 13 groups of 64 bytes. Number n = 0..63 of the block's groups of 4 k is digit n % 5 of group n / 5: a byte
 * holds the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded down to 1 / 256. Trits are written anew from whatever the file's bytes
 * decode to, so a panel has no other bytes than these. */
static void pack_tq1_0(const uint8_t *src, int r, uint8_t *dst)
{
    static const uint8_t weight[5] = {81, 27, 9, 3, 1};
    uint8_t sums[13 * 4] = {0};
    put16(dst, r, ((const pl_block_tq1_0 *)(const void *)src)->d);
    for (int s = 0; s < 8; s++) {
        int8_t q[32];
        float scale[2], min[2];
        pl_decode32(PL_TYPE_TQ1_0, src, s, q, scale, min);
        for (int l = 0; l < 32; l++) {
            int n = 8 * s + l / 4;
            uint8_t *sum = &sums[n / 5 * 4 + l % 4];
            *sum = (uint8_t)(*sum + (q[l] + 1) * weight[n % 5]);
        }
    }
    for (int i = 0; i < 13 * 4; i++)
        dst[32 + i / 4 * 64 + 4 * r + i % 4] = (uint8_t)(sums[i] * 256 / 243);
}

void pl_pack_codebook(int type, const uint8_t *src, int r, uint8_t *dst)
{
    const void *block = src;
    switch (type) {
    case PL_TYPE_IQ1_S: pack_iq1_s(block, r, dst); break;
    case PL_TYPE_IQ1_M: pack_iq1_m(block, r, dst); break;
    case PL_TYPE_IQ2_XXS: pack_iq2_xxs(block, r, dst); break;
    case PL_TYPE_IQ2_XS: pack_iq2_xs(block, r, dst); break;
    case PL_TYPE_IQ2_S: pack_iq2_s(block, r, dst); break;
    case PL_TYPE_IQ3_XXS: pack_iq3_xxs(block, r, dst); break;
    case PL_TYPE_IQ3_S: pack_iq3_s(block, r, dst); break;
    case PL_TYPE_TQ1_0: pack_tq1_0(src, r, dst); break;
    }
}
