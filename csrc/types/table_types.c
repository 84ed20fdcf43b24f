/* Types whose 4 bits are looked up in a table of 16 values: IQ4_NL, IQ4_XS, MXFP4. */
#include "api.h"
#include "types/blocks.h"
#include "types/codes.h"
#include "types/quantize.h"
#include "types/type_functions.h"

static void look_up_nibbles(const int8_t table[16], const uint8_t *qs, int8_t *q)
{
    for (int l = 0; l < 16; l++) {
        q[l] = table[qs[l] & 15];
        q[l + 16] = table[qs[l] >> 4];
    }
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, doubled (OCP Microscaling Formats 1.0). */
static const int8_t e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

int pl_decode_iq4_nl(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq4_nl *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    look_up_nibbles(iq4_values, b->qs, q);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_mxfp4(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_mxfp4 *b = block;
    float d = pl_e8m0_to_f32_half(b->e);
    (void)sub;
    look_up_nibbles(e2m1_doubled, b->qs, q);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq4_xs(const void *block, int sub, int8_t *q, float *scale, float *min)
{
    const pl_block_iq4_xs *b = block;
    int low = (b->scales_l[sub / 2] >> 4 * (sub % 2)) & 15, high = (b->scales_h >> 2 * sub) & 3;
    float d = pl_f16_to_f32(b->d) * (float)((low | high << 4) - 32);
    look_up_nibbles(iq4_values, b->qs + 16 * sub, q);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

static void pack_iq4_nl(const pl_block_iq4_nl *b, int64_t stride, uint8_t *dst)
{
    pl_take_halves(&b->d, stride, dst);
    pl_take_words(b->qs, stride, 4, dst + 32);
}
PL_PACK_PANEL(IQ4_NL, iq4_nl, 0)

static void pack_mxfp4(const pl_block_mxfp4 *b, int64_t stride, uint8_t *dst)
{
    for (int r = 0; r < PL_ROWS; r++)
        dst[r] = *(&b->e + r * stride);
    pl_take_words(b->qs, stride, 4, dst + 16);
}
PL_PACK_PANEL(MXFP4, mxfp4, 0)

static void pack_iq4_xs(const pl_block_iq4_xs *b, int64_t stride, uint8_t *dst)
{
    pl_row_words head[2], even, odd; /* d and scales_h, scales_l; scales of even and of odd sub-blocks */
    pl_take_words(b, stride, 2, head);
    pl_take_halves(&b->d, stride, dst);
    for (int q = 0; q < PL_FOURS; q++) {
        pl_rows4 low = head[1][q], high = head[0][q] >> 16; /* of two sub-blocks in each byte, in each nibble */
        high = (high | high << 8) & 0x00ff00ffu;
        high = (high | high << 4) & 0x0f0f0f0fu;
        even[q] = pl_minus_32((low & 0x0f0f0f0fu) | (high & 0x03030303u) << 4);
        odd[q] = pl_minus_32((low >> 4 & 0x0f0f0f0fu) | (high & 0x0c0c0c0cu) << 2);
    }
    pl_put_bytes(even, dst + 32, 32);
    pl_put_bytes(odd, dst + 48, 32);
    pl_take_words(b->qs, stride, 32, dst + 160);
}
PL_PACK_PANEL(IQ4_XS, iq4_xs, .scales_h = 0xaaaa)

void pl_write_iq4_nl(const pl_quantized *b, uint8_t *dst)
{
    pl_block_iq4_nl out = {.d = b->d};
    pl_join_nibbles(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

void pl_write_mxfp4(const pl_quantized *b, uint8_t *dst)
{
    pl_block_mxfp4 out = {.e = b->e};
    pl_join_nibbles(b->q, out.qs);
    memcpy(dst, &out, sizeof out);
}

void pl_write_iq4_xs(const pl_quantized *b, uint8_t *dst)
{
    pl_block_iq4_xs out = {.d = b->d};
    unsigned high = 0;
    for (int j = 0; j < 8; j++) {
        unsigned scale = (unsigned)(b->scale[j] + 32);
        out.scales_l[j / 2] = (uint8_t)(out.scales_l[j / 2] | (scale & 15) << 4 * (j % 2));
        high |= scale >> 4 << 2 * j;
        pl_join_nibbles(b->q + 32 * j, out.qs + 16 * j);
    }
    out.scales_h = (uint16_t)high;
    memcpy(dst, &out, sizeof out);
}
