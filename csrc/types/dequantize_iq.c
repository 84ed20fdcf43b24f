/* Decoders of the table and codebook types. Every index is masked to the size of its table: any bytes are safe. */
#include "api.h"
#include "types/blocks.h"
#include "types/decode.h"

/* ---- 4 bits through a table ---- */

static void look_up_nibbles(const int8_t table[16], const uint8_t *qs, int8_t *q) {
    for (int l = 0; l < 16; l++) {
        q[l] = table[qs[l] & 15];
        q[l + 16] = table[qs[l] >> 4];
    }
}

static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/* E2M1: 0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives, doubled (OCP Microscaling Formats 1.0). */
static const int8_t e2m1_doubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

int pl_decode_iq4_nl(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq4_nl *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    look_up_nibbles(iq4_values, b->qs, q);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_mxfp4(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_mxfp4 *b = block;
    float d = pl_e8m0_to_f32_half(b->e);
    (void)sub;
    look_up_nibbles(e2m1_doubled, b->qs, q);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq4_xs(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq4_xs *b = block;
    int low = (b->scales_l[sub / 2] >> 4 * (sub % 2)) & 15, high = (b->scales_h >> 2 * sub) & 3;
    float d = pl_f16_to_f32(b->d) * (float)((low | high << 4) - 32);
    look_up_nibbles(iq4_values, b->qs + 16 * sub, q);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

/* ---- codebooks ---- */

static uint32_t load_u32(const uint8_t *p) {
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

/* Eight signs stored as seven: the eighth makes the number of minus signs even. */
static unsigned complete_signs(unsigned seven) {
    unsigned parity = seven ^ seven >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    return seven | (parity & 1) << 7;
}

/* q[l] = ± entry[l]; bit l of `signs` set means minus. `n` is 4 or 8. */
static void put_signed(int8_t *q, const int8_t *entry, unsigned signs, int n) {
    for (int l = 0; l < n; l++) {
        int minus = -(int)(signs >> l & 1); /* 0 or all ones: without a branch, so that compilers vectorize it */
        q[l] = (int8_t)((entry[l] ^ minus) - minus);
    }
}

/* d * (1/2 + s) * unit, exact in float32. */
static float half_step_scale(uint16_t d, unsigned s, float unit) {
    return pl_f16_to_f32(d) * (0.5f + (float)s) * unit;
}

int pl_decode_iq2_xxs(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq2_xxs *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ2_XXS);
    if (!book) return PL_EINVAL;
    const uint8_t *index = b->qs + 8 * sub;
    uint32_t packed = load_u32(index + 4);
    for (int j = 0; j < 4; j++) put_signed(q + 8 * j, book + 8 * index[j], complete_signs(packed >> 7 * j & 127), 8);
    float d = half_step_scale(b->d, packed >> 28, 0.25f);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq2_xs(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq2_xs *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ2_XS);
    if (!book) return PL_EINVAL;
    for (int j = 0; j < 4; j++) {
        unsigned packed = b->qs[4 * sub + j];
        put_signed(q + 8 * j, book + 8 * (packed & 511), complete_signs(packed >> 9), 8);
    }
    unsigned s = b->scales[sub];
    pl_decode_scales(scale, min, half_step_scale(b->d, s & 15, 0.25f), half_step_scale(b->d, s >> 4, 0.25f));
    return PL_OK;
}

int pl_decode_iq2_s(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq2_s *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ2_S);
    if (!book) return PL_EINVAL;
    for (int j = 0; j < 4; j++) {
        unsigned index = b->qs[4 * sub + j] | (b->qh[sub] >> 2 * j & 3u) << 8;
        put_signed(q + 8 * j, book + 8 * index, b->signs[4 * sub + j], 8);
    }
    unsigned s = b->scales[sub];
    pl_decode_scales(scale, min, half_step_scale(b->d, s & 15, 0.25f), half_step_scale(b->d, s >> 4, 0.25f));
    return PL_OK;
}

int pl_decode_iq3_xxs(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq3_xxs *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ3_XXS);
    if (!book) return PL_EINVAL;
    const uint8_t *index = b->qs + 8 * sub;
    uint32_t packed = load_u32(b->scales + 4 * sub);
    for (int k = 0; k < 8; k++) {
        unsigned signs = complete_signs(packed >> 7 * (k / 2) & 127);
        put_signed(q + 4 * k, book + 4 * index[k], signs >> 4 * (k % 2), 4);
    }
    float d = half_step_scale(b->d, packed >> 28, 0.5f);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq3_s(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq3_s *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ3_S);
    if (!book) return PL_EINVAL;
    for (int k = 0; k < 8; k++) {
        unsigned index = b->qs[8 * sub + k] | (b->qh[sub] >> k & 1u) << 8;
        unsigned signs = b->signs[4 * sub + k / 2];
        put_signed(q + 4 * k, book + 4 * index, signs >> 4 * (k % 2), 4);
    }
    int s = b->scales[sub / 2] >> 4 * (sub % 2) & 15;
    float d = pl_f16_to_f32(b->d) * (float)(1 + 2 * s);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

/* IQ1 values are scale * (entry ± 1/8); in eighths they are integers. */
static void put_shifted(int8_t *q, const int8_t *entry, int minus) {
    for (int l = 0; l < 8; l++) q[l] = (int8_t)(8 * entry[l] + (minus ? -1 : 1));
}

static float eighths_scale(uint16_t d, unsigned s) { return pl_f16_to_f32(d) * (float)(2 * s + 1) * 0.125f; }

int pl_decode_iq1_s(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq1_s *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ1_S);
    if (!book) return PL_EINVAL;
    unsigned high = b->qh[sub];
    for (int j = 0; j < 4; j++) {
        unsigned index = b->qs[4 * sub + j] | (high >> 3 * j & 7) << 8;
        put_shifted(q + 8 * j, book + 8 * index, (high & 0x8000) != 0);
    }
    float d = eighths_scale(b->d, high >> 12 & 7);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

int pl_decode_iq1_m(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_iq1_m *b = block;
    const int8_t *book = pl_codebook_values(PL_TYPE_IQ1_M);
    if (!book) return PL_EINVAL;
    for (int j = 0; j < 4; j++) {
        unsigned high = b->qh[2 * sub + j / 2] >> 4 * (j % 2) & 15u;
        unsigned index = b->qs[4 * sub + j] | (high & 7) << 8;
        put_shifted(q + 8 * j, book + 8 * index, (high & 8) != 0);
    }
    uint16_t d = 0;
    for (int i = 0; i < 4; i++) d = (uint16_t)(d | b->scales[i] >> 12 << 4 * i);
    unsigned s = (unsigned)b->scales[sub / 2] >> 6 * (sub % 2); /* two scales of 3 bits */
    pl_decode_scales(scale, min, eighths_scale(d, s & 7), eighths_scale(d, s >> 3 & 7));
    return PL_OK;
}
