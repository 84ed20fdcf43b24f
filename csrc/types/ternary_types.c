/* The ternary types: -1, 0 and 1 with one scale for 256. */
#include "api.h"
#include "types/blocks.h"
#include "types/codes.h"
#include "types/quantize.h"
#include "types/type_functions.h"

/* Trit `i` (first is 0) of a byte that holds the fraction 0.t0 t1 t2 … in base 3: shift it left, keep the digit. */
static int8_t trit(uint8_t byte, int i)
{
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    uint8_t shifted = (uint8_t)(byte * powers[i]);
    return (int8_t)((shifted * 3 >> 8) - 1);
}

int pl_decode_tq1_0(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_tq1_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    for (int l = 0; l < 32; l++) {
        int tail = 32 * sub + l - 160; /* elements 160–239: bytes 32–47, the last 16: qh */
        if (tail < 0)
            q[l] = trit(b->qs[l], sub);
        else if (tail < 80)
            q[l] = trit(b->qs[32 + tail % 16], tail / 16);
        else
            q[l] = trit(b->qh[tail % 4], (tail - 80) / 4);
    }
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_tq2_0(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_tq2_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    pl_split_pairs(b->qs, sub, q);
    pl_subtract(q, 1);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

/* TQ1_0: d[16], then 13 groups of 64 bytes. Number n = 0..63 of the block's groups of 4 k is digit n % 5 of group n / 5: a byte
 * holds the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded down to 1 / 256. Trits are written anew from whatever the file's bytes
 * decode to, so a panel has no other bytes than these. */
static void put_tq1_0(const pl_block_tq1_0 *b, int r, uint8_t *dst)
{
    static const uint8_t weight[5] = {81, 27, 9, 3, 1};
    uint8_t sums[13 * 4] = {0};
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        int8_t q[32];
        float scale[2], min[2];
        pl_decode_tq1_0(b, s, q, scale, min);
        for (int l = 0; l < 32; l++) {
            int n = 8 * s + l / 4;
            uint8_t *sum = &sums[n / 5 * 4 + l % 4];
            *sum = (uint8_t)(*sum + (q[l] + 1) * weight[n % 5]);
        }
    }
    for (int i = 0; i < 13 * 4; i++)
        dst[32 + i / 4 * 64 + 4 * r + i % 4] = (uint8_t)(sums[i] * 256 / 243);
}
PL_PACK_PANEL(TQ1_0, tq1_0)

static void put_tq2_0(const pl_block_tq2_0 *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t q[32];
        for (int l = 0; l < 32; l++)
            q[l] = b->qs[s / 4 * 32 + l] >> (2 * (s % 4)) & 3;
        pl_put_codes2(dst + 32 + 128 * s, r, q);
    }
}
PL_PACK_PANEL(TQ2_0, tq2_0)

/* n trits, `stride` apart, as the fraction 0.t0 t1 t2 ... in base 3, rounded up to 1/256. */
static uint8_t join_trits(const uint8_t *q, int stride, int n)
{
    unsigned number = 0;
    for (int i = 0; i < 5; i++)
        number = number * 3 + (i < n ? q[i * stride] : 0u);
    return (uint8_t)((number * 256 + 242) / 243);
}

void pl_write_tq1_0(const pl_quantized *b, uint8_t *dst)
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

void pl_write_tq2_0(const pl_quantized *b, uint8_t *dst)
{
    pl_block_tq2_0 out = {.d = b->d};
    pl_join_pairs(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}
