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

/* ---- a block of 16 rows -> a panel block ---- */

/* d and dmin, side by side in a word, the second with its sign changed. */
static void put_d_dmin(pl_row_words d, uint8_t *dst)
{
    for (int q = 0; q < PL_FOURS; q++)
        d[q] ^= 0x80000000u;
    pl_put_halves(d, dst, dst + 32);
}

/* The beginning of Q4_K and Q5_K: d, dmin and the 6-bit scales and minima, as bytes (k_scale_min has where they lie), the
 * minima of two sub-blocks side by side. */
static void put_scales_mins(const void *d, int64_t stride, uint8_t *dst)
{
    pl_row_words w[4], scales[2], mins[2];
    pl_take_words(d, stride, 4, w);
    put_d_dmin(w[0], dst);
    for (int q = 0; q < PL_FOURS; q++) {
        scales[0][q] = w[1][q] & 0x3f3f3f3fu;
        scales[1][q] = (w[3][q] & 0x0f0f0f0fu) | (w[1][q] >> 6 & 0x03030303u) << 4;
        mins[0][q] = w[2][q] & 0x3f3f3f3fu;
        mins[1][q] = (w[3][q] >> 4 & 0x0f0f0f0fu) | (w[2][q] >> 6 & 0x03030303u) << 4;
    }
    for (int i = 0; i < 2; i++) {
        pl_put_bytes(scales[i], dst + 64 + 64 * i, 16);
        pl_put_halves(mins[i], dst + 192 + 64 * i, dst + 224 + 64 * i);
    }
}

static void pack_q4_k(const pl_block_q4_k *b, int64_t stride, uint8_t *dst)
{
    put_scales_mins(&b->d, stride, dst);
    for (int s = 0; s < 8; s += 2)
        pl_pack_codes4(b->qs + 16 * s, stride, dst + 320 + 256 * s, 256);
}
PL_PACK_PANEL(Q4_K, q4_k, .dmin = 0x8000)

static void pack_q5_k(const pl_block_q5_k *b, int64_t stride, uint8_t *dst)
{
    put_scales_mins(&b->d, stride, dst);
    pl_pack_bits(b->qh, stride, dst + 320, 320);
    for (int s = 0; s < 8; s += 2)
        pl_pack_codes4(b->qs + 16 * s, stride, dst + 384 + 320 * s, 320);
}
PL_PACK_PANEL(Q5_K, q5_k, .dmin = 0x8000)

static void pack_q6_k(const pl_block_q6_k *b, int64_t stride, uint8_t *dst)
{
    pl_row_words scales[4];
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->scales, stride, 4, scales);
    for (int i = 0; i < 4; i++)
        pl_put_bytes(scales[i], dst + 32 + 64 * i, 16);
    for (int half = 0; half < 2; half++) { /* of 128: nibbles of sub-blocks 0 and 2, of 1 and 3; pairs of all four */
        uint8_t *sub = dst + 288 + 4 * 384 * half;
        pl_pack_codes4(b->ql + 64 * half, stride, sub, 2 * 384);
        pl_pack_codes4(b->ql + 64 * half + 32, stride, sub + 384, 2 * 384);
        pl_pack_codes2(b->qh + 32 * half, stride, sub + 256, 384);
    }
}
PL_PACK_PANEL(Q6_K, q6_k, 0)

static void pack_q3_k(const pl_block_q3_k *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[3], scales;
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->scales, stride, 3, w);
    for (int i = 0; i < 4; i++) { /* q3_k_scale has where they lie */
        for (int q = 0; q < PL_FOURS; q++)
            scales[q] = pl_minus_32((w[i % 2][q] >> 4 * (i / 2) & 0x0f0f0f0fu) | (w[2][q] >> 2 * i & 0x03030303u) << 4);
        pl_put_bytes(scales, dst + 32 + 64 * i, 16);
    }
    pl_pack_bits(b->hmask, stride, dst + 288, 192);
    pl_pack_codes2(b->qs, stride, dst + 352, 192);
    pl_pack_codes2(b->qs + 32, stride, dst + 352 + 4 * 192, 192);
}
PL_PACK_PANEL(Q3_K, q3_k, .scales = {[8] = 0xaa, 0xaa, 0xaa, 0xaa})

static void pack_q2_k(const pl_block_q2_k *b, int64_t stride, uint8_t *dst)
{
    pl_row_words d, scales[4];
    pl_take_words(&b->d, stride, 1, &d);
    put_d_dmin(d, dst);
    pl_take_words(b->scales, stride, 4, scales);
    for (int i = 0; i < 4; i++)
        pl_put_bytes(scales[i], dst + 64 + 64 * i, 16);
    pl_pack_codes2(b->qs, stride, dst + 320, 128);
    pl_pack_codes2(b->qs + 32, stride, dst + 320 + 4 * 128, 128);
}
PL_PACK_PANEL(Q2_K, q2_k, .dmin = 0x8000)

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
