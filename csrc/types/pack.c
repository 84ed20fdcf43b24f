/* File blocks of 16 rows -> panel blocks (layout: panel.h). Plain C: every tier reads the same panels. */
#include "types/panel.h"
#include "types/blocks.h"
#include "types/pack.h"

const float pl_q8_factor[PL_Q8_STEPS] = {/* 2^(-0.4 step) */
                                         1.0f,        0.757858283f, 0.574349177f, 0.435275282f,
                                         0.329876978f, 0.25f,       0.189464571f, 0.143587294f};

typedef struct {
    int64_t k, bytes; /* of a panel block */
} panel_shape;

static panel_shape shape_of(int type)
{
    switch (type) {
    case PL_TYPE_F32: return (panel_shape){1, 4 * PL_ROWS};
    case PL_TYPE_F16:
    case PL_TYPE_BF16: return (panel_shape){1, 2 * PL_ROWS};
    case PL_TYPE_Q4_K: return (panel_shape){256, 148 * PL_ROWS};
    case PL_TYPE_Q5_K: return (panel_shape){256, 180 * PL_ROWS};
    case PL_TYPE_Q3_K: return (panel_shape){256, 114 * PL_ROWS};
    case PL_TYPE_IQ4_XS: return (panel_shape){256, 138 * PL_ROWS};
    case PL_TYPE_IQ1_M: return (panel_shape){256, 58 * PL_ROWS};
    default: {
        const pl_type_info *info = pl_type_find(type);
        return info ? (panel_shape){info->block_elements, (int64_t)info->block_bytes * PL_ROWS} : (panel_shape){0, 0};
    }
    }
}

int64_t pl_panel_block_bytes(int type) { return shape_of(type).bytes; }
int64_t pl_panel_block_k(int type) { return shape_of(type).k; }
int pl_panel_is_float(int type) { return type == PL_TYPE_F32 || type == PL_TYPE_F16 || type == PL_TYPE_BF16; }

/* ---- one row's part of a sub-block of 32 k; r is the row within the panel ---- */

/* q: 16 bytes, byte l = code l | code l + 16 << 4 (the file's order in 32-wide types): 4-byte moves. */
static void put_nibbles(uint8_t *codes4, int r, const uint8_t *q)
{
    for (int v = 0; v < 4; v++)
        memcpy(codes4 + v * 64 + r * 4, q + v * 4, 4);
}
/* The same from 32 separate codes below 16. */
static void put_codes4(uint8_t *codes4, int r, const uint8_t *q)
{
    for (int v = 0; v < 4; v++) { /* four codes at once: they are too small to reach each other when shifted */
        uint32_t low, high;
        memcpy(&low, q + 4 * v, 4);
        memcpy(&high, q + 4 * v + 16, 4);
        low |= high << 4;
        memcpy(codes4 + v * 64 + r * 4, &low, 4);
    }
}
static void put_codes2(uint8_t *codes2, int r, const uint8_t *q)
{
    for (int h = 0; h < 2; h++) {
        uint32_t word = 0;
        for (int f = 0; f < 4; f++) {
            uint32_t four;
            memcpy(&four, q + 4 * (2 * f + h), 4);
            word |= four << (2 * f);
        }
        memcpy(codes2 + h * 64 + r * 4, &word, 4);
    }
}
static void put16(uint8_t *at, int r, uint16_t value) { memcpy(at + 2 * r, &value, 2); }

/* Scale and min number j of the K types' 12 bytes of 6-bit values. */
static void scale_min_k4(int j, const uint8_t *s, uint8_t *scale, uint8_t *min)
{
    if (j < 4) {
        *scale = s[j] & 63;
        *min = s[j + 4] & 63;
    } else {
        *scale = (uint8_t)((s[j + 4] & 15) | (s[j - 4] >> 6) << 4);
        *min = (uint8_t)(s[j + 4] >> 4 | (s[j] >> 6) << 4);
    }
}

/* ---- one row of one block; dst is the panel block, zeroed before its first row ---- */

static void pack_small(int type, const uint8_t *src, int r, uint8_t *dst)
{
    switch (type) {
    case PL_TYPE_Q4_0:
    case PL_TYPE_IQ4_NL:
        memcpy(dst + 2 * r, src, 2);
        put_nibbles(dst + 32, r, src + 2);
        break;
    case PL_TYPE_Q4_1:
        memcpy(dst + 2 * r, src, 2);
        memcpy(dst + 32 + 2 * r, src + 2, 2);
        put_nibbles(dst + 64, r, src + 4);
        break;
    case PL_TYPE_Q5_0:
    case PL_TYPE_Q5_1: {
        int fields = type == PL_TYPE_Q5_0 ? 1 : 2;
        uint32_t bits;
        for (int f = 0; f < fields; f++)
            memcpy(dst + 32 * f + 2 * r, src + 2 * f, 2);
        memcpy(&bits, src + 2 * fields, 4);
        pl_put_bits(dst + 32 * fields, r, bits);
        put_nibbles(dst + 32 * fields + 64, r, src + 2 * fields + 4);
        break;
    }
    case PL_TYPE_Q8_0:
        memcpy(dst + 2 * r, src, 2);
        for (int g = 0; g < 8; g++)
            memcpy(dst + 32 + g * 64 + r * 4, src + 2 + 4 * g, 4);
        break;
    case PL_TYPE_MXFP4:
        dst[r] = src[0];
        put_nibbles(dst + 16, r, src + 1);
        break;
    }
}

static void pack_q4_k(const pl_block_q4_k *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    put16(dst + 32, r, b->dmin ^ 0x8000);
    for (int s = 0; s < 8; s++) {
        uint8_t q[16];
        const uint8_t *qs = b->qs + s / 2 * 32; /* low nibbles: even sub-block, high nibbles: odd one */
        scale_min_k4(s, b->scales, dst + 64 + 16 * s + r, dst + 192 + 32 * (s / 2) + 2 * r + s % 2);
        for (int l = 0; l < 16; l++)
            q[l] = s % 2 ? (uint8_t)(qs[l] >> 4 | (qs[l + 16] & 0xf0)) : (uint8_t)((qs[l] & 15) | qs[l + 16] << 4);
        put_nibbles(dst + 320 + 256 * s, r, q);
    }
}

static void pack_q5_k(const pl_block_q5_k *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    put16(dst + 32, r, b->dmin ^ 0x8000);
    for (int s = 0; s < 8; s++) {
        uint8_t q[16], *sub = dst + 320 + 320 * s;
        uint32_t bits = 0;
        const uint8_t *qs = b->qs + s / 2 * 32;
        scale_min_k4(s, b->scales, dst + 64 + 16 * s + r, dst + 192 + 32 * (s / 2) + 2 * r + s % 2);
        for (int l = 0; l < 16; l++)
            q[l] = s % 2 ? (uint8_t)(qs[l] >> 4 | (qs[l + 16] & 0xf0)) : (uint8_t)((qs[l] & 15) | qs[l + 16] << 4);
        for (int l = 0; l < 32; l++)
            bits |= (uint32_t)(b->qh[l] >> s & 1) << l;
        pl_put_bits(sub, r, bits);
        put_nibbles(sub + 64, r, q);
    }
}

static void pack_q6_k(const pl_block_q6_k *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int i = 0; i < 16; i++)
        dst[32 + 16 * i + r] = (uint8_t)b->scales[i];
    for (int s = 0; s < 8; s++) { /* halves of 128: ql gives sub-blocks 0, 1 low and 2, 3 high */
        uint8_t low[32], high[32], *sub = dst + 288 + 384 * s;
        const uint8_t *ql = b->ql + s / 4 * 64 + s % 2 * 32, *qh = b->qh + s / 4 * 32;
        for (int l = 0; l < 32; l++) {
            low[l] = s % 4 < 2 ? ql[l] & 15 : ql[l] >> 4;
            high[l] = qh[l] >> (2 * (s % 4)) & 3;
        }
        put_codes4(sub, r, low);
        put_codes2(sub + 256, r, high);
    }
}

static void pack_q3_k(const pl_block_q3_k *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int i = 0; i < 16; i++) {
        int low = i < 8 ? b->scales[i] & 15 : b->scales[i - 8] >> 4;
        int high = b->scales[8 + i % 4] >> (2 * (i / 4)) & 3;
        dst[32 + 16 * i + r] = (uint8_t)((low | high << 4) - 32);
    }
    for (int s = 0; s < 8; s++) {
        uint8_t q[32], *sub = dst + 288 + 192 * s;
        uint32_t bits = 0;
        for (int l = 0; l < 32; l++) {
            q[l] = b->qs[s / 4 * 32 + l] >> (2 * (s % 4)) & 3;
            bits |= (uint32_t)(b->hmask[l] >> s & 1) << l;
        }
        pl_put_bits(sub, r, bits);
        put_codes2(sub + 64, r, q);
    }
}

static void pack_q2_k(const pl_block_q2_k *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    put16(dst + 32, r, b->dmin ^ 0x8000);
    for (int i = 0; i < 16; i++)
        dst[64 + 16 * i + r] = b->scales[i];
    for (int s = 0; s < 8; s++) {
        uint8_t q[32];
        for (int l = 0; l < 32; l++)
            q[l] = b->qs[s / 4 * 32 + l] >> (2 * (s % 4)) & 3;
        put_codes2(dst + 320 + 128 * s, r, q);
    }
}

static void pack_tq2_0(const pl_block_tq2_0 *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        uint8_t q[32];
        for (int l = 0; l < 32; l++)
            q[l] = b->qs[s / 4 * 32 + l] >> (2 * (s % 4)) & 3;
        put_codes2(dst + 32 + 128 * s, r, q);
    }
}

static void pack_iq4_xs(const pl_block_iq4_xs *b, int r, uint8_t *dst)
{
    put16(dst, r, b->d);
    for (int s = 0; s < 8; s++) {
        int low = b->scales_l[s / 2] >> (s % 2 * 4) & 15, high = b->scales_h >> (2 * s) & 3;
        dst[32 + 16 * s + r] = (uint8_t)((low | high << 4) - 32);
        put_nibbles(dst + 160 + 256 * s, r, b->qs + 16 * s);
    }
}

static void pack_block(int type, const uint8_t *src, int r, uint8_t *dst)
{
    const void *block = src;
    switch (type) {
    case PL_TYPE_Q2_K: pack_q2_k(block, r, dst); break;
    case PL_TYPE_Q3_K: pack_q3_k(block, r, dst); break;
    case PL_TYPE_Q4_K: pack_q4_k(block, r, dst); break;
    case PL_TYPE_Q5_K: pack_q5_k(block, r, dst); break;
    case PL_TYPE_Q6_K: pack_q6_k(block, r, dst); break;
    case PL_TYPE_TQ2_0: pack_tq2_0(block, r, dst); break;
    case PL_TYPE_IQ4_XS: pack_iq4_xs(block, r, dst); break;
    case PL_TYPE_Q4_0:
    case PL_TYPE_Q4_1:
    case PL_TYPE_Q5_0:
    case PL_TYPE_Q5_1:
    case PL_TYPE_Q8_0:
    case PL_TYPE_IQ4_NL:
    case PL_TYPE_MXFP4: pack_small(type, src, r, dst); break;
    default: pl_pack_codebook(type, src, r, dst); break;
    }
}

static void pack_2_bytes(const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *dst)
{
    for (int64_t k = 0; k < cols; k++)
        for (int r = 0; r < n_rows; r++)
            memcpy(dst + (k * PL_ROWS + r) * 2, src + r * row_bytes + k * 2, 2);
}

static void pack_4_bytes(const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *dst)
{
    for (int64_t k = 0; k < cols; k++)
        for (int r = 0; r < n_rows; r++)
            memcpy(dst + (k * PL_ROWS + r) * 4, src + r * row_bytes + k * 4, 4);
}

void pl_pack_panel(int type, const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *dst)
{
    panel_shape shape = shape_of(type);
    const pl_type_info *info = pl_type_find(type);
    int64_t blocks = cols / shape.k;
    memset(dst, 0, (size_t)(blocks * shape.bytes));
    if (pl_panel_is_float(type)) {
        (type == PL_TYPE_F32 ? pack_4_bytes : pack_2_bytes)(src, row_bytes, n_rows, cols, dst);
        return;
    }
    for (int64_t b = 0; b < blocks; b++)
        for (int r = 0; r < n_rows; r++)
            pack_block(type, src + r * row_bytes + b * info->block_bytes, r, dst + b * shape.bytes);
}
