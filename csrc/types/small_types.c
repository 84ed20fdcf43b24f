/* Types of blocks of 32: codes of 4, 5 or 8 bits with a scale, and for Q4_1 and Q5_1 a minimum. */
#include "api.h"
#include "types/blocks.h"
#include "types/codes.h"
#include "types/quantize.h"
#include "types/type_functions.h"

/* ---- a block -> integers ---- */

static void add_fifth_bits(const uint8_t *qh, int8_t *q)
{
    for (int l = 0; l < 32; l++)
        q[l] = (int8_t)(q[l] | ((qh[l / 8] >> l % 8) & 1) << 4);
}

int pl_decode_q4_0(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q4_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    pl_split_nibbles(b->qs, q);
    pl_subtract(q, 8);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_q4_1(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q4_1 *b = block;
    (void)sub;
    pl_split_nibbles(b->qs, q);
    scale[0] = scale[1] = pl_f16_to_f32(b->d);
    min[0] = min[1] = -pl_f16_to_f32(b->m);
    return PL_OK;
}

int pl_decode_q5_0(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q5_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    pl_split_nibbles(b->qs, q);
    add_fifth_bits(b->qh, q);
    pl_subtract(q, 16);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_q5_1(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q5_1 *b = block;
    (void)sub;
    pl_split_nibbles(b->qs, q);
    add_fifth_bits(b->qh, q);
    scale[0] = scale[1] = pl_f16_to_f32(b->d);
    min[0] = min[1] = -pl_f16_to_f32(b->m);
    return PL_OK;
}

int pl_decode_q8_0(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_q8_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    memcpy(q, b->qs, 32);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

/* ---- row r of a block -> a panel block ---- */

static void put_q4_0(const pl_block_q4_0 *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put_nibbles(dst + 32, r, b->qs);
}
PL_PACK_PANEL(Q4_0, q4_0)

static void put_q4_1(const pl_block_q4_1 *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put16(dst + 32, r, b->m);
    pl_put_nibbles(dst + 64, r, b->qs);
}
PL_PACK_PANEL(Q4_1, q4_1)

static void put_q5_0(const pl_block_q5_0 *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put_bits(dst + 32, r, pl_load_u32(b->qh));
    pl_put_nibbles(dst + 96, r, b->qs);
}
PL_PACK_PANEL(Q5_0, q5_0)

static void put_q5_1(const pl_block_q5_1 *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put16(dst + 32, r, b->m);
    pl_put_bits(dst + 64, r, pl_load_u32(b->qh));
    pl_put_nibbles(dst + 128, r, b->qs);
}
PL_PACK_PANEL(Q5_1, q5_1)

static void put_q8_0(const pl_block_q8_0 *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int g = 0; g < 8; g++)
        memcpy(dst + 32 + g * 64 + r * 4, b->qs + 4 * g, 4);
}
PL_PACK_PANEL(Q8_0, q8_0)

/* ---- codes and scales -> a block ---- */

static void join_fifth_bits(const uint8_t *q, uint8_t *qh)
{
    for (int byte = 0; byte < 4; byte++) { /* bit 4 of eight codes; the product moves that of code k to bit 56 + k */
        uint64_t codes = 0;
        for (int k = 0; k < 8; k++)
            codes |= (uint64_t)q[8 * byte + k] << 8 * k;
        qh[byte] = (uint8_t)((codes >> 4 & 0x0101010101010101u) * 0x0102040810204080u >> 56);
    }
}

void pl_write_q4_0(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q4_0 out = {.d = b->d};
    pl_join_nibbles(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

void pl_write_q4_1(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q4_1 out = {.d = b->d, .m = b->m};
    pl_join_nibbles(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

void pl_write_q5_0(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q5_0 out = {.d = b->d};
    pl_join_nibbles(b->q, out.qs);
    join_fifth_bits(b->q, out.qh);
    memcpy(dst, &out, sizeof out);
}

void pl_write_q5_1(const pl_quantized *b, uint8_t *dst)
{
    pl_block_q5_1 out = {.d = b->d, .m = b->m};
    pl_join_nibbles(b->q, out.qs);
    join_fifth_bits(b->q, out.qh);
    memcpy(dst, &out, sizeof out);
}
