/* The K types: super-blocks of 256 whose sub-blocks of 16 or 32 have scales (and minima) of a few bits. Sub-block s holds
 * elements 32 s … 32 s + 31. */
#include "api.h"
#include "types/blocks.h"
#include "types/codes.h"
#include "types/quantize.h"
#include "types/type_functions.h"

/* ---- a sub-block -> integers ---- */

/* Four bits per element: each 32 bytes hold two sub-blocks, low nibbles first. */
static void split_nibbles_k(const uint8_t *qs, int sub, int8_t *q)
{
    const uint8_t *bytes = qs + 32 * (sub / 2);
    for (int l = 0; l < 32; l++)
        q[l] = (int8_t)((bytes[l] >> 4 * (sub % 2)) & 15);
}

int pl_decode_q2_k(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q2_k *b = block;
    float d = pl_f16_to_f32(b->d), dmin = pl_f16_to_f32(b->dmin);
    pl_split_pairs(b->qs, sub, q);
    for (int half = 0; half < 2; half++) {
        uint8_t packed = b->scales[2 * sub + half];
        scale[half] = d * (float)(packed & 15);
        min[half] = dmin * (float)(packed >> 4);
    }
    return PL_OK;
}

/* Scale `i` (0–15) of Q3_K, 6 bits: low nibbles in bytes 0–7, high pairs in bytes 8–11. */
static int q3_k_scale(const uint8_t *scales, int i)
{
    int low = (scales[i % 8] >> 4 * (i / 8)) & 15;
    int high = (scales[8 + i % 4] >> 2 * (i / 4)) & 3;
    return low | high << 4;
}

int pl_decode_q3_k(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q3_k *b = block;
    float d = pl_f16_to_f32(b->d);
    pl_split_pairs(b->qs, sub, q);
    for (int l = 0; l < 32; l++)
        q[l] = (int8_t)((q[l] | ((b->hmask[l] >> sub) & 1) << 2) - 4);
    pl_decode_scales(scale, min, d * (float)(q3_k_scale(b->scales, 2 * sub) - 32),
                     d * (float)(q3_k_scale(b->scales, 2 * sub + 1) - 32));
    return PL_OK;
}

/* Scale and minimum of sub-block `sub` of Q4_K and Q5_K, 6 bits each: whole in bytes 0–7 for the first four, and for
 * the others nibbles in bytes 8–11 with the top two bits of bytes 0–7. */
static void k_scale_min(const uint8_t *s, int sub, uint8_t *scale, uint8_t *min)
{
    if (sub < 4) {
        *scale = s[sub] & 63;
        *min = s[sub + 4] & 63;
    } else {
        *scale = (uint8_t)((s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4);
        *min = (uint8_t)(s[sub + 4] >> 4 | (s[sub] >> 6) << 4);
    }
}

/* The same of row r into a panel block of Q4_K or Q5_K: bytes, the minima of two sub-blocks side by side. */
static void put_scale_min(const uint8_t *scales, int sub, int r, uint8_t *dst)
{
    k_scale_min(scales, sub, dst + 64 + 16 * sub + r, dst + 192 + 32 * (sub / 2) + 2 * r + sub % 2);
}

static void k_scales(uint16_t d, uint16_t dmin, const uint8_t *scales, int sub, float *scale, float *min)
{
    uint8_t sc, m;
    k_scale_min(scales, sub, &sc, &m);
    scale[0] = scale[1] = pl_f16_to_f32(d) * (float)sc;
    min[0] = min[1] = pl_f16_to_f32(dmin) * (float)m;
}

int pl_decode_q4_k(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q4_k *b = block;
    split_nibbles_k(b->qs, sub, q);
    k_scales(b->d, b->dmin, b->scales, sub, scale, min);
    return PL_OK;
}

int pl_decode_q5_k(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q5_k *b = block;
    const uint8_t *qs = b->qs + 32 * (sub / 2);
    for (int l = 0; l < 32; l++) {
        int low = (qs[l] >> 4 * (sub % 2)) & 15, high = (b->qh[l] >> sub) & 1;
        q[l] = (int8_t)(low | high << 4);
    }
    k_scales(b->d, b->dmin, b->scales, sub, scale, min);
    return PL_OK;
}

/* Each 128 elements: 64 bytes of nibbles (low: sub-blocks 0 and 1, high: 2 and 3), then 32 bytes of high pairs. */
int pl_decode_q6_k(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q6_k *b = block;
    int half = sub / 4, r = sub % 4;
    const uint8_t *ql = b->ql + 64 * half + 32 * (r % 2), *qh = b->qh + 32 * half;
    float d = pl_f16_to_f32(b->d);
    for (int l = 0; l < 32; l++) {
        int low = (ql[l] >> 4 * (r / 2)) & 15, high = (qh[l] >> 2 * r) & 3;
        q[l] = (int8_t)((low | high << 4) - 32);
    }
    pl_decode_scales(scale, min, d * (float)b->scales[2 * sub], d * (float)b->scales[2 * sub + 1]);
    return PL_OK;
}

/* ---- row r of a block -> a panel block ---- */

static void put_q4_k(const pl_block_q4_k *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put16(dst + 32, r, b->dmin ^ 0x8000);
    for (int s = 0; s < 8; s++) {
        uint8_t q[16];
        const uint8_t *qs = b->qs + s / 2 * 32; /* low nibbles: even sub-block, high nibbles: odd one */
        put_scale_min(b->scales, s, r, dst);
        for (int l = 0; l < 16; l++)
            q[l] = s % 2 ? (uint8_t)(qs[l] >> 4 | (qs[l + 16] & 0xf0)) : (uint8_t)((qs[l] & 15) | qs[l + 16] << 4);
        pl_put_nibbles(dst + 320 + 256 * s, r, q);
    }
}
PL_PACK_PANEL(Q4_K, q4_k)

static void put_q5_k(const pl_block_q5_k *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put16(dst + 32, r, b->dmin ^ 0x8000);
    for (int s = 0; s < 8; s++) {
        uint8_t q[16], *sub = dst + 320 + 320 * s;
        uint32_t bits = 0;
        const uint8_t *qs = b->qs + s / 2 * 32;
        put_scale_min(b->scales, s, r, dst);
        for (int l = 0; l < 16; l++)
            q[l] = s % 2 ? (uint8_t)(qs[l] >> 4 | (qs[l + 16] & 0xf0)) : (uint8_t)((qs[l] & 15) | qs[l + 16] << 4);
        for (int l = 0; l < 32; l++)
            bits |= (uint32_t)(b->qh[l] >> s & 1) << l;
        pl_put_bits(sub, r, bits);
        pl_put_nibbles(sub + 64, r, q);
    }
}
PL_PACK_PANEL(Q5_K, q5_k)

static void put_q6_k(const pl_block_q6_k *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int i = 0; i < 16; i++)
        dst[32 + 16 * i + r] = (uint8_t)b->scales[i];
    for (int s = 0; s < 8; s++) { /* halves of 128: ql gives sub-blocks 0, 1 low and 2, 3 high */
        uint8_t low[32], high[32], *sub = dst + 288 + 384 * s;
        const uint8_t *ql = b->ql + s / 4 * 64 + s % 2 * 32, *qh = b->qh + s / 4 * 32;
        for (int l = 0; l < 32; l++) {
            low[l] = s % 4 < 2 ? ql[l] & 15 : ql[l] >> 4;
            high[l] = qh[l] >> (2 * (s % 4)) & 3;
        }
        pl_put_codes4(sub, r, low);
        pl_put_codes2(sub + 256, r, high);
    }
}
PL_PACK_PANEL(Q6_K, q6_k)

static void put_q3_k(const pl_block_q3_k *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int i = 0; i < 16; i++) {
        int low = i < 8 ? b->scales[i] & 15 : b->scales[i - 8] >> 4;
        int high = b->scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        dst[32 + 16 * i + r] = (uint8_t)((low | high << 4) - 32);
    }
    for (int s = 0; s < 8; s++) {
        uint8_t q[32], *sub = dst + 288 + 192 * s;
        uint32_t bits = 0;
        for (int l = 0; l < 32; l++) {
            q[l] = b->qs[s / 4 * 32 + l] >> (2 * (s % 4)) & 3;
            bits |= (uint32_t)(b->hmask[l] >> s & 1) << l;
        }
        pl_put_bits(sub, r, bits);
        pl_put_codes2(sub + 64, r, q);
    }
}
PL_PACK_PANEL(Q3_K, q3_k)

static void put_q2_k(const pl_block_q2_k *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put16(dst + 32, r, b->dmin ^ 0x8000);
    for (int i = 0; i < 16; i++)
        dst[64 + 16 * i + r] = b->scales[i];
    for (int s = 0; s < 8; s++) {
        uint8_t q[32];
        for (int l = 0; l < 32; l++)
            q[l] = b->qs[s / 4 * 32 + l] >> (2 * (s % 4)) & 3;
        pl_put_codes2(dst + 320 + 128 * s, r, q);
    }
}
PL_PACK_PANEL(Q2_K, q2_k)

/* ---- codes and scales -> a block ---- */

/* Bit `bit` of the codes of each sub-block of 32 into one bit of 32 bytes. */
static void join_high_bits(const uint8_t *q, int bit, uint8_t *high)
{
    for (int j = 0; j < 8; j++)
        for (int l = 0; l < 32; l++)
            high[l] = (uint8_t)(high[l] | (q[32 * j + l] >> bit & 1) << j);
}

/* Four bits per element, two sub-blocks of 32 in 32 bytes. */
static void join_nibbles_k(const uint8_t *q, uint8_t *qs)
{
    for (int pair = 0; pair < 4; pair++, q += 64, qs += 32)
        for (int l = 0; l < 32; l++)
            qs[l] = (uint8_t)((q[l] & 15) | q[l + 32] << 4);
}

void pl_write_q2_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q2_k out = {.d = b->d, .dmin = b->m};
    for (int j = 0; j < 16; j++)
        out.scales[j] = (uint8_t)(b->scale[j] | b->min[j] << 4);
    pl_join_pairs(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

void pl_write_q3_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q3_k out = {.d = b->d};
    for (int j = 0; j < 16; j++) {
        int scale = b->scale[j] + 32;
        out.scales[j % 8] = (uint8_t)(out.scales[j % 8] | (scale & 15) << 4 * (j / 8));
        out.scales[8 + j % 4] = (uint8_t)(out.scales[8 + j % 4] | scale >> 4 << 2 * (j / 4));
    }
    join_high_bits(b->q, 2, out.hmask);
    pl_join_pairs(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

/* 8 scales and 8 minima of 6 bits: whole for the first four; of the others, nibbles and the pairs left over. */
static void join_scales_mins(const pl_quantized *b, uint8_t *scales)
{
    for (int j = 0; j < 4; j++) {
        int scale = b->scale[j + 4], min = b->min[j + 4];
        scales[j] = (uint8_t)(b->scale[j] | scale >> 4 << 6);
        scales[j + 4] = (uint8_t)(b->min[j] | min >> 4 << 6);
        scales[j + 8] = (uint8_t)((scale & 15) | (min & 15) << 4);
    }
}

void pl_write_q4_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q4_k out = {.d = b->d, .dmin = b->m};
    join_scales_mins(b, out.scales);
    join_nibbles_k(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

void pl_write_q5_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q5_k out = {.d = b->d, .dmin = b->m};
    join_scales_mins(b, out.scales);
    join_nibbles_k(b->q, out.qs);
    join_high_bits(b->q, 4, out.qh);
    memcpy(dst, &out, sizeof out);
}

void pl_write_q6_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q6_k out = {.d = b->d};
    const uint8_t *q = b->q;
    memcpy(out.scales, b->scale, 16);
    for (int half = 0; half < 2; half++, q += 128)
        for (int l = 0; l < 32; l++) {
            out.ql[64 * half + l] = (uint8_t)((q[l] & 15) | q[l + 64] << 4);
            out.ql[64 * half + 32 + l] = (uint8_t)((q[l + 32] & 15) | q[l + 96] << 4);
            int low = q[l] >> 4 | q[l + 32] >> 4 << 2, high = q[l + 64] >> 4 | q[l + 96] >> 4 << 2;
            out.qh[32 * half + l] = (uint8_t)(low | high << 4);
        }
    memcpy(dst, &out, sizeof out);
}
