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

/* The trits of all bytes, first to last, plus 1: of n words of 16 rows -> 5 n words, the first trits first. */
static void split_trits(const pl_row_words *w, int n, int trits, pl_row_words *digits)
{
    for (int i = 0; i < n; i++) {
        pl_row_words even, odd; /* bytes, so that what a product moves out of them stays beside them */
        for (int q = 0; q < PL_FOURS; q++) {
            even[q] = w[i][q] & 0x00ff00ffu;
            odd[q] = w[i][q] >> 8 & 0x00ff00ffu;
        }
        for (int t = 0; t < trits; t++)
            for (int q = 0; q < PL_FOURS; q++) {
                pl_rows4 e = even[q] * 3, o = odd[q] * 3;
                digits[t * n + i][q] = (e >> 8 & 0x00030003u) | (o & 0x03000300u);
                even[q] = e & 0x00ff00ffu;
                odd[q] = o & 0x00ff00ffu;
            }
    }
}

/* Four bytes up to 242, times 256 / 243: n and 13 / 243 of it, which (219 n + 8) / 4096 rounds down to the same numbers. */
static pl_rows4 to_fractions(pl_rows4 n)
{
    pl_rows4 even = (n & 0x00ff00ffu) * 219 + 0x00080008u, odd = (n >> 8 & 0x00ff00ffu) * 219 + 0x00080008u;
    return n + (even >> 12 & 0x000f000fu) + (odd >> 4 & 0x0f000f00u);
}

/* TQ1_0: d[16], then 13 groups of 64 bytes. Number n = 0..63 of the block's groups of 4 k is digit n % 5 of group n / 5: a byte
 * holds the fraction 0.t0 t1 t2 t3 t4 in base 3, rounded down to 1 / 256. Trits are written anew from whatever the file's bytes
 * decode to, so a panel has no other bytes than these. */
static void pack_tq1_0(const pl_block_tq1_0 *b, int64_t stride, uint8_t *dst)
{
    pl_row_words w[13], digits[65];
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 13, w); /* and qh */
    split_trits(w, 8, 5, digits);
    split_trits(w + 8, 4, 5, digits + 40);
    split_trits(w + 12, 1, 4, digits + 60);
    memset(digits[64], 0, sizeof digits[64]);
    for (int g = 0; g < 13; g++) {
        pl_row_words codes;
        const pl_row_words *d = digits + 5 * g;
        for (int q = 0; q < PL_FOURS; q++)
            codes[q] = to_fractions((((d[0][q] * 3 + d[1][q]) * 3 + d[2][q]) * 3 + d[3][q]) * 3 + d[4][q]);
        memcpy(dst + 32 + 64 * g, codes, sizeof codes);
    }
}
PL_PACK_PANEL(TQ1_0, tq1_0, 0)

static void pack_tq2_0(const pl_block_tq2_0 *b, int64_t stride, uint8_t *dst)
{
    pl_take_halves(&b->d, stride, dst);
    pl_pack_codes2(b->qs, stride, dst + 32, 128);
    pl_pack_codes2(b->qs + 32, stride, dst + 32 + 4 * 128, 128);
}
PL_PACK_PANEL(TQ2_0, tq2_0, 0)

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
