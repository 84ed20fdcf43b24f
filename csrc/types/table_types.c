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

static void put_iq4_nl(const pl_block_iq4_nl *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    pl_put_nibbles(dst + 32, r, b->qs);
}
PL_PACK_PANEL(IQ4_NL, iq4_nl)

static void put_mxfp4(const pl_block_mxfp4 *b, int r, uint8_t *dst)
{
    dst[r] = b->e;
    pl_put_nibbles(dst + 16, r, b->qs);
}
PL_PACK_PANEL(MXFP4, mxfp4)

static void put_iq4_xs(const pl_block_iq4_xs *b, int r, uint8_t *dst)
{
    pl_put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        int low = b->scales_l[s / 2] >> (s % 2 * 4) & 15, high = b->scales_h >> (2 * s) & 3;
        dst[32 + 16 * s + r] = (uint8_t)((low | high << 4) - 32);
        pl_put_nibbles(dst + 160 + 256 * s, r, b->qs + 16 * s);
    }
}
PL_PACK_PANEL(IQ4_XS, iq4_xs)

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
