/* Tensor types: what they are, and their decoding to integers (pl_decode32) and to float32 (pl_dequantize).
 *
 * There is one decoder per type, and it gives integers with a scale and a minimum. float32 values follow as
 * scale * q - min, one rounding per operation, which is what the `gguf` Python package computes: scales are products
 * of a binary16 and a few bits (exact in float32), and what it multiplies afterwards are the same integers. */
#include "api.h"
#include "types/blocks.h"
#include "types/decode.h"

/* ---- blocks of 32 ---- */

static void split_nibbles(const uint8_t *qs, int8_t *q) {
    for (int l = 0; l < 16; l++) {
        q[l] = (int8_t)(qs[l] & 15);
        q[l + 16] = (int8_t)(qs[l] >> 4);
    }
}

static void add_fifth_bits(const uint8_t *qh, int8_t *q) {
    for (int l = 0; l < 32; l++) q[l] = (int8_t)(q[l] | ((qh[l / 8] >> l % 8) & 1) << 4);
}

static void subtract(int8_t *q, int offset) {
    for (int l = 0; l < 32; l++) q[l] = (int8_t)(q[l] - offset);
}

static int decode_q4_0(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q4_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    split_nibbles(b->qs, q);
    subtract(q, 8);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

static int decode_q4_1(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q4_1 *b = block;
    (void)sub;
    split_nibbles(b->qs, q);
    scale[0] = scale[1] = pl_f16_to_f32(b->d);
    min[0] = min[1] = -pl_f16_to_f32(b->m);
    return PL_OK;
}

static int decode_q5_0(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q5_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    split_nibbles(b->qs, q);
    add_fifth_bits(b->qh, q);
    subtract(q, 16);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

static int decode_q5_1(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q5_1 *b = block;
    (void)sub;
    split_nibbles(b->qs, q);
    add_fifth_bits(b->qh, q);
    scale[0] = scale[1] = pl_f16_to_f32(b->d);
    min[0] = min[1] = -pl_f16_to_f32(b->m);
    return PL_OK;
}

static int decode_q8_0(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q8_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    (void)sub;
    memcpy(q, b->qs, 32);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

/* ---- super-blocks of 256: sub-block s holds elements 32 s … 32 s + 31 ---- */

/* Two bits per element: bytes 0–31 hold sub-blocks 0–3, bytes 32–63 sub-blocks 4–7, lowest bits first. */
static void split_pairs(const uint8_t *qs, int sub, int8_t *q) {
    const uint8_t *bytes = qs + 32 * (sub / 4);
    for (int l = 0; l < 32; l++) q[l] = (int8_t)((bytes[l] >> 2 * (sub % 4)) & 3);
}

/* Four bits per element: each 32 bytes hold two sub-blocks, low nibbles first. */
static void split_nibbles_k(const uint8_t *qs, int sub, int8_t *q) {
    const uint8_t *bytes = qs + 32 * (sub / 2);
    for (int l = 0; l < 32; l++) q[l] = (int8_t)((bytes[l] >> 4 * (sub % 2)) & 15);
}

static int decode_q2_k(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q2_k *b = block;
    float d = pl_f16_to_f32(b->d), dmin = pl_f16_to_f32(b->dmin);
    split_pairs(b->qs, sub, q);
    for (int half = 0; half < 2; half++) {
        uint8_t packed = b->scales[2 * sub + half];
        scale[half] = d * (float)(packed & 15);
        min[half] = dmin * (float)(packed >> 4);
    }
    return PL_OK;
}

/* Scale `i` (0–15) of Q3_K, 6 bits: low nibbles in bytes 0–7, high pairs in bytes 8–11. */
static int q3_k_scale(const uint8_t *scales, int i) {
    int low = (scales[i % 8] >> 4 * (i / 8)) & 15;
    int high = (scales[8 + i % 4] >> 2 * (i / 4)) & 3;
    return low | high << 4;
}

static int decode_q3_k(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q3_k *b = block;
    float d = pl_f16_to_f32(b->d);
    split_pairs(b->qs, sub, q);
    for (int l = 0; l < 32; l++) q[l] = (int8_t)((q[l] | ((b->hmask[l] >> sub) & 1) << 2) - 4);
    pl_decode_scales(scale, min, d * (float)(q3_k_scale(b->scales, 2 * sub) - 32),
                     d * (float)(q3_k_scale(b->scales, 2 * sub + 1) - 32));
    return PL_OK;
}

/* Scale and minimum of sub-block `sub` of Q4_K and Q5_K, 6 bits each: whole in bytes 0–7 for the first four, and for
 * the others nibbles in bytes 8–11 with the top two bits of bytes 0–7. */
static void k_scale_min(const uint8_t *s, int sub, int *scale, int *min) {
    if (sub < 4) {
        *scale = s[sub] & 63;
        *min = s[sub + 4] & 63;
    } else {
        *scale = (s[sub + 4] & 15) | (s[sub - 4] >> 6) << 4;
        *min = s[sub + 4] >> 4 | (s[sub] >> 6) << 4;
    }
}

static void k_scales(uint16_t d, uint16_t dmin, const uint8_t *scales, int sub, float *scale, float *min) {
    int sc, m;
    k_scale_min(scales, sub, &sc, &m);
    scale[0] = scale[1] = pl_f16_to_f32(d) * (float)sc;
    min[0] = min[1] = pl_f16_to_f32(dmin) * (float)m;
}

static int decode_q4_k(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_q4_k *b = block;
    split_nibbles_k(b->qs, sub, q);
    k_scales(b->d, b->dmin, b->scales, sub, scale, min);
    return PL_OK;
}

static int decode_q5_k(const void *block, int sub, int8_t *q, float *scale, float *min) {
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
static int decode_q6_k(const void *block, int sub, int8_t *q, float *scale, float *min) {
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

/* ---- ternary ---- */

/* Trit `i` (first is 0) of a byte that holds the fraction 0.t0 t1 t2 … in base 3: shift it left, keep the digit. */
static int8_t trit(uint8_t byte, int i) {
    static const uint8_t powers[5] = {1, 3, 9, 27, 81};
    uint8_t shifted = (uint8_t)(byte * powers[i]);
    return (int8_t)((shifted * 3 >> 8) - 1);
}

static int decode_tq1_0(const void *block, int sub, int8_t *q, float *scale, float *min) {
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

static int decode_tq2_0(const void *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_block_tq2_0 *b = block;
    float d = pl_f16_to_f32(b->d);
    split_pairs(b->qs, sub, q);
    subtract(q, 1);
    pl_decode_scales(scale, min, d, d);
    return PL_OK;
}

/* ---- the table ---- */

static const struct {
    pl_type_info info;
    pl_decoder decode; /* NULL: a plain float type */
} types[PL_TYPE_COUNT] = {
    [PL_TYPE_F32] = {{"F32", 1, 4, 0, 0}, NULL},
    [PL_TYPE_F16] = {{"F16", 1, 2, 0, 0}, NULL},
    [PL_TYPE_BF16] = {{"BF16", 1, 2, 0, 0}, NULL},
    [PL_TYPE_Q4_0] = {{"Q4_0", 32, sizeof(pl_block_q4_0), 32, 0}, decode_q4_0},
    [PL_TYPE_Q4_1] = {{"Q4_1", 32, sizeof(pl_block_q4_1), 32, 1}, decode_q4_1},
    [PL_TYPE_Q5_0] = {{"Q5_0", 32, sizeof(pl_block_q5_0), 32, 0}, decode_q5_0},
    [PL_TYPE_Q5_1] = {{"Q5_1", 32, sizeof(pl_block_q5_1), 32, 1}, decode_q5_1},
    [PL_TYPE_Q8_0] = {{"Q8_0", 32, sizeof(pl_block_q8_0), 32, 0}, decode_q8_0},
    [PL_TYPE_Q2_K] = {{"Q2_K", 256, sizeof(pl_block_q2_k), 16, 1}, decode_q2_k},
    [PL_TYPE_Q3_K] = {{"Q3_K", 256, sizeof(pl_block_q3_k), 16, 0}, decode_q3_k},
    [PL_TYPE_Q4_K] = {{"Q4_K", 256, sizeof(pl_block_q4_k), 32, 1}, decode_q4_k},
    [PL_TYPE_Q5_K] = {{"Q5_K", 256, sizeof(pl_block_q5_k), 32, 1}, decode_q5_k},
    [PL_TYPE_Q6_K] = {{"Q6_K", 256, sizeof(pl_block_q6_k), 16, 0}, decode_q6_k},
    [PL_TYPE_IQ1_S] = {{"IQ1_S", 256, sizeof(pl_block_iq1_s), 32, 0}, pl_decode_iq1_s},
    [PL_TYPE_IQ1_M] = {{"IQ1_M", 256, sizeof(pl_block_iq1_m), 16, 0}, pl_decode_iq1_m},
    [PL_TYPE_IQ2_XXS] = {{"IQ2_XXS", 256, sizeof(pl_block_iq2_xxs), 32, 0}, pl_decode_iq2_xxs},
    [PL_TYPE_IQ2_XS] = {{"IQ2_XS", 256, sizeof(pl_block_iq2_xs), 16, 0}, pl_decode_iq2_xs},
    [PL_TYPE_IQ2_S] = {{"IQ2_S", 256, sizeof(pl_block_iq2_s), 16, 0}, pl_decode_iq2_s},
    [PL_TYPE_IQ3_XXS] = {{"IQ3_XXS", 256, sizeof(pl_block_iq3_xxs), 32, 0}, pl_decode_iq3_xxs},
    [PL_TYPE_IQ3_S] = {{"IQ3_S", 256, sizeof(pl_block_iq3_s), 32, 0}, pl_decode_iq3_s},
    [PL_TYPE_IQ4_NL] = {{"IQ4_NL", 32, sizeof(pl_block_iq4_nl), 32, 0}, pl_decode_iq4_nl},
    [PL_TYPE_IQ4_XS] = {{"IQ4_XS", 256, sizeof(pl_block_iq4_xs), 32, 0}, pl_decode_iq4_xs},
    [PL_TYPE_TQ1_0] = {{"TQ1_0", 256, sizeof(pl_block_tq1_0), 32, 0}, decode_tq1_0},
    [PL_TYPE_TQ2_0] = {{"TQ2_0", 256, sizeof(pl_block_tq2_0), 32, 0}, decode_tq2_0},
    [PL_TYPE_MXFP4] = {{"MXFP4", 32, sizeof(pl_block_mxfp4), 32, 0}, pl_decode_mxfp4},
};

const pl_type_info *pl_type_find(int type) {
    if (type < 0 || type >= PL_TYPE_COUNT || !types[type].info.name) return NULL;
    return &types[type].info;
}

const char *pl_type_name(int type) {
    const pl_type_info *info = pl_type_find(type);
    return info ? info->name : NULL;
}

int pl_type_block_elements(int type) {
    const pl_type_info *info = pl_type_find(type);
    return info ? info->block_elements : PL_EINVAL;
}

int pl_type_block_bytes(int type) {
    const pl_type_info *info = pl_type_find(type);
    return info ? info->block_bytes : PL_EINVAL;
}

int pl_type_group(int type) {
    const pl_type_info *info = pl_type_find(type);
    return info ? info->group : PL_EINVAL;
}

int pl_type_has_min(int type) {
    const pl_type_info *info = pl_type_find(type);
    return info ? info->has_min : PL_EINVAL;
}

/* ---- the two forms ---- */

int pl_decode32(int type, const uint8_t *block, int sub, int8_t *q, float *scale, float *min) {
    const pl_type_info *info = pl_type_find(type);
    if (!info || !types[type].decode || sub < 0 || sub >= info->block_elements / 32) return PL_EINVAL;
    return types[type].decode(block, sub, q, scale, min);
}

static int dequantize_blocks(pl_decoder decode, const pl_type_info *info, const uint8_t *src, float *dst, int64_t n) {
    for (; n > 0; n -= info->block_elements, src += info->block_bytes) {
        for (int sub = 0; sub < info->block_elements / 32; sub++, dst += 32) {
            int8_t q[32];
            float scale[2], min[2];
            int rc = decode(src, sub, q, scale, min);
            if (rc) return rc;
            for (int l = 0; l < 16; l++) dst[l] = scale[0] * (float)q[l] - min[0];
            for (int l = 16; l < 32; l++) dst[l] = scale[1] * (float)q[l] - min[1];
        }
    }
    return PL_OK;
}

static void dequantize_16_bits(int type, const uint8_t *src, float *dst, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, src + 2 * i, sizeof bits);
        dst[i] = type == PL_TYPE_F16 ? pl_f16_to_f32(bits) : pl_bf16_to_f32(bits);
    }
}

int pl_dequantize(int type, const void *src, float *dst, int64_t n) {
    const pl_type_info *info = pl_type_find(type);
    if (!info || n < 0 || n % info->block_elements) return PL_EINVAL;
    if (n == 0) return PL_OK;
    if (types[type].decode) return dequantize_blocks(types[type].decode, info, src, dst, n);
    if (type == PL_TYPE_F32)
        memcpy(dst, src, (size_t)n * sizeof(float));
    else
        dequantize_16_bits(type, src, dst, n);
    return PL_OK;
}
