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

/* ---- a block of 16 rows -> a panel block: what of it lies in which order stays as it is ---- */

static void pack_q4_0(const pl_block_q4_0 *b, int64_t stride, uint8_t *dst)
{
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 4, dst + 32);
}
PL_PACK_PANEL(Q4_0, q4_0, 0)

static void pack_q4_1(const pl_block_q4_1 *b, int64_t stride, uint8_t *dst)
{
    pl_row_words scales;
    pl_take_words(b, stride, 1, &scales);
    pl_put_halves(scales, dst, dst + 32);
    pl_take_words(b->qs, stride, 4, dst + 64);
}
PL_PACK_PANEL(Q4_1, q4_1, 0)

static void pack_q5_0(const pl_block_q5_0 *b, int64_t stride, uint8_t *dst)
{
    pl_row_words bits;
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qh, stride, 1, &bits);
    pl_put_nibbles(bits, dst + 32, 8, 16);
    pl_take_words(b->qs, stride, 4, dst + 96);
}
PL_PACK_PANEL(Q5_0, q5_0, 0)

static void pack_q5_1(const pl_block_q5_1 *b, int64_t stride, uint8_t *dst)
{
    pl_row_words head[2];
    pl_take_words(b, stride, 2, head);
    pl_put_halves(head[0], dst, dst + 32);
    pl_put_nibbles(head[1], dst + 64, 8, 16);
    pl_take_words(b->qs, stride, 4, dst + 128);
}
PL_PACK_PANEL(Q5_1, q5_1, 0)

static void pack_q8_0(const pl_block_q8_0 *b, int64_t stride, uint8_t *dst)
{
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 8, dst + 32);
}
PL_PACK_PANEL(Q8_0, q8_0, 0)

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
