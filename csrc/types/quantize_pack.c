/* Blocks as they lie in a file, from what the quantizers found: the inverse of the decoders in dequantize.c. */
#include "types/blocks.h"
#include "types/quantize.h"

/* Low nibbles: elements 0-15, high: 16-31. Codes above 15 lend their fifth bit to add_fifth_bits. */
static void join_nibbles(const uint8_t *q, uint8_t *qs)
{
    for (int l = 0; l < 16; l++)
        qs[l] = (uint8_t)((q[l] & 15) | q[l + 16] << 4);
}

static void join_fifth_bits(const uint8_t *q, uint8_t *qh)
{
    for (int byte = 0; byte < 4; byte++) { /* bit 4 of eight codes; the product moves that of code k to bit 56 + k */
        uint64_t codes = 0;
        for (int k = 0; k < 8; k++)
            codes |= (uint64_t)q[8 * byte + k] << 8 * k;
        qh[byte] = (uint8_t)((codes >> 4 & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    }
}

/* Bit `bit` of the codes of each sub-block of 32 into one bit of 32 bytes. */
static void join_high_bits(const uint8_t *q, int bit, uint8_t *high)
{
    for (int j = 0; j < 8; j++)
        for (int l = 0; l < 32; l++)
            high[l] = (uint8_t)(high[l] | (q[32 * j + l] >> bit & 1) << j);
}

/* Two bits per element, four sub-blocks of 32 in 32 bytes. */
static void join_pairs(const uint8_t *q, uint8_t *qs)
{
    for (int half = 0; half < 2; half++, q += 128, qs += 32)
        for (int l = 0; l < 32; l++)
            qs[l] = (uint8_t)((q[l] & 3) | (q[l + 32] & 3) << 2 | (q[l + 64] & 3) << 4 | q[l + 96] << 6);
}

/* Four bits per element, two sub-blocks of 32 in 32 bytes. */
static void join_nibbles_k(const uint8_t *q, uint8_t *qs)
{
    for (int pair = 0; pair < 4; pair++, q += 64, qs += 32)
        for (int l = 0; l < 32; l++)
            qs[l] = (uint8_t)((q[l] & 15) | q[l + 32] << 4);
}

/* ---- blocks of 32 ---- */

static void pack_q4_0(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q4_0 out = {.d = b->d};
    join_nibbles(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

static void pack_q4_1(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q4_1 out = {.d = b->d, .m = b->m};
    join_nibbles(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

static void pack_q5_0(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q5_0 out = {.d = b->d};
    join_nibbles(b->q, out.qs);
    join_fifth_bits(b->q, out.qh);
    memcpy(dst, &out, sizeof out);
}

static void pack_q5_1(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q5_1 out = {.d = b->d, .m = b->m};
    join_nibbles(b->q, out.qs);
    join_fifth_bits(b->q, out.qh);
    memcpy(dst, &out, sizeof out);
}

static void pack_mxfp4(const pl_quantized *b, uint8_t *dst)
{
    pl_block_mxfp4 out = {.e = b->e};
    join_nibbles(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

/* ---- super-blocks ---- */

static void pack_q2_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q2_k out = {.d = b->d, .dmin = b->m};
    for (int j = 0; j < 16; j++)
        out.scales[j] = (uint8_t)(b->scale[j] | b->min[j] << 4);
    join_pairs(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

static void pack_q3_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q3_k out = {.d = b->d};
    for (int j = 0; j < 16; j++) {
        int scale = b->scale[j] + 32;
        out.scales[j % 8] = (uint8_t)(out.scales[j % 8] | (scale & 15) << 4 * (j / 8));
        out.scales[8 + j % 4] = (uint8_t)(out.scales[8 + j % 4] | scale >> 4 << 2 * (j / 4));
    }
    join_high_bits(b->q, 2, out.hmask);
    join_pairs(b->q, out.qs);
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

static void pack_q4_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q4_k out = {.d = b->d, .dmin = b->m};
    join_scales_mins(b, out.scales);
    join_nibbles_k(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

static void pack_q5_k(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q5_k out = {.d = b->d, .dmin = b->m};
    join_scales_mins(b, out.scales);
    join_nibbles_k(b->q, out.qs);
    join_high_bits(b->q, 4, out.qh);
    memcpy(dst, &out, sizeof out);
}

static void pack_q6_k(const pl_quantized *b, uint8_t *dst)
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

static void pack_iq4_xs(const pl_quantized *b, uint8_t *dst)
{
    pl_block_iq4_xs out = {.d = b->d};
    unsigned high = 0;
    for (int j = 0; j < 8; j++) {
        unsigned scale = (unsigned)(b->scale[j] + 32);
        out.scales_l[j / 2] = (uint8_t)(out.scales_l[j / 2] | (scale & 15) << 4 * (j % 2));
        high |= scale >> 4 << 2 * j;
        join_nibbles(b->q + 32 * j, out.qs + 16 * j);
    }
    out.scales_h = (uint16_t)high;
    memcpy(dst, &out, sizeof out);
}

/* ---- ternary ---- */

/* n trits, `stride` apart, as the fraction 0.t0 t1 t2 ... in base 3, rounded up to 1/256. */
static uint8_t join_trits(const uint8_t *q, int stride, int n)
{
    unsigned number = 0;
    for (int i = 0; i < 5; i++)
        number = number * 3 + (i < n ? q[i * stride] : 0u);
    return (uint8_t)((number * 256 + 242) / 243);
}

static void pack_tq1_0(const pl_quantized *b, uint8_t *dst)
{
    pl_block_tq1_0 out = {.d = b->d};
    for (int l = 0; l < 32; l++)
        out.qs[l] = join_trits(b->q + l, 32, 5);
    for (int l = 0; l < 16; l++)
        out.qs[32 + l] = join_trits(b->q + 160 + l, 16, 5);
    for (int l = 0; l < 4; l++)
        out.qh[l] = join_trits(b->q + 240 + l, 4, 4);
    memcpy(dst, &out, sizeof out);
}

static void pack_tq2_0(const pl_quantized *b, uint8_t *dst)
{
    pl_block_tq2_0 out = {.d = b->d};
    join_pairs(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

void pl_pack_block(int type, const pl_quantized *b, uint8_t *dst)
{
    switch (type) {
    case PL_TYPE_Q4_0:
    case PL_TYPE_IQ4_NL: pack_q4_0(b, dst); break; /* the same layout */
    case PL_TYPE_Q4_1: pack_q4_1(b, dst); break;
    case PL_TYPE_Q5_0: pack_q5_0(b, dst); break;
    case PL_TYPE_Q5_1: pack_q5_1(b, dst); break;
    case PL_TYPE_MXFP4: pack_mxfp4(b, dst); break;
    case PL_TYPE_Q2_K: pack_q2_k(b, dst); break;
    case PL_TYPE_Q3_K: pack_q3_k(b, dst); break;
    case PL_TYPE_Q4_K: pack_q4_k(b, dst); break;
    case PL_TYPE_Q5_K: pack_q5_k(b, dst); break;
    case PL_TYPE_Q6_K: pack_q6_k(b, dst); break;
    case PL_TYPE_IQ4_XS: pack_iq4_xs(b, dst); break;
    case PL_TYPE_TQ1_0: pack_tq1_0(b, dst); break;
    case PL_TYPE_TQ2_0: pack_tq2_0(b, dst); break;
    default: break;
    }
}
