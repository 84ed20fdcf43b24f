/* read_weights: the values of stored floats exactly, and whether all are finite. quantize_weights: every tier must write the bytes that the scalar one writes, and nothing else; what it writes must
 * decode to finite numbers near the input. */
#include "check.h"

static const int types[] = {PL_TYPE_F32,  PL_TYPE_F16,    PL_TYPE_BF16,   PL_TYPE_Q8_0,  PL_TYPE_Q4_0,  PL_TYPE_Q4_1,
                            PL_TYPE_Q5_0, PL_TYPE_Q5_1,   PL_TYPE_Q2_K,   PL_TYPE_Q3_K,  PL_TYPE_Q4_K,  PL_TYPE_Q5_K,
                            PL_TYPE_Q6_K, PL_TYPE_IQ4_NL, PL_TYPE_IQ4_XS, PL_TYPE_TQ1_0, PL_TYPE_TQ2_0, PL_TYPE_MXFP4};

enum { W_RANDOM, W_ZERO, W_CONSTANT, W_TIES, W_SPIKE, W_TINY, W_DENORMAL, W_HUGE, W_TERNARY, W_OFFSET, W_MIXED, W_MODES };

static float weight(int mode, int i)
{
    switch (mode) {
    case W_ZERO: return i % 2 ? -0.0f : 0.0f;
    case W_CONSTANT: return -0.375f;
    case W_TIES: return (float)(random_below(33) - 16) * 0.5f;
    case W_SPIKE: return i % 97 == 9 ? -90.0f : random_float() * 0.01f;
    case W_TINY: return random_float() * 0x1p-20f; /* scales near binary16's smallest */
    case W_DENORMAL: return random_float() * 0x1p-126f;
    case W_HUGE: return random_float() * 3.4e38f;
    case W_TERNARY: return (float)(random_below(3) - 1) * 0.07f;
    case W_OFFSET: return 5.0f + random_float() * 0.01f;
    case W_MIXED: return random_float() * (i / 64 % 2 ? 1e10f : 1e-10f);
    default: return (random_float() + random_float() + random_float()) * 0.04f;
    }
}

static float column_importance(int mode)
{
    switch (mode) {
    case 1: return random_below(4) ? random_float() + 1.0f : 0.0f;
    case 2: return 0.0f;
    case 3: return random_below(50) ? 1e-3f : 1e6f;
    default: return random_float() + 1.0f;
    }
}

/* All finite, and for ordinary weights not far off. */
static void check_values(int type, int ordinary, const float *x, const uint8_t *packed, int n)
{
    float *values = malloc(sizeof(float) * (size_t)n);
    double lost = 0, all = 0;
    if (pl_dequantize(type, packed, values, n) != PL_OK)
        fail(tiers[0], "does not decode");
    for (int i = 0; i < n; i++) {
        if (!isfinite(values[i]))
            fail(tiers[0], "element %d of %.9g became %g", i, (double)x[i], (double)values[i]);
        lost += ((double)values[i] - (double)x[i]) * ((double)values[i] - (double)x[i]);
        all += (double)x[i] * (double)x[i];
    }
    int coarse = type == PL_TYPE_TQ1_0 || type == PL_TYPE_TQ2_0;
    if (ordinary && !(lost <= (coarse ? 0.35 : 0.12) * all))
        fail(tiers[0], "%.3g of the sum of squares is lost", lost / all);
    free(values);
}

static void check_case(int type, int mode, int rows, int cols, int importance_mode)
{
    size_t n = (size_t)rows * (size_t)cols;
    size_t bytes = n / (size_t)pl_type_block_elements(type) * (size_t)pl_type_block_bytes(type);
    float *x = guarded(n * 4, 4 * (size_t)random_below(16)), *importance = guarded((size_t)cols * 4, 4);
    begin_case("%s, weights %d, %d x %d, importance %d", pl_type_name(type), mode, rows, cols, importance_mode);
    for (size_t i = 0; i < n; i++)
        x[i] = weight(mode, (int)i);
    for (int i = 0; i < cols; i++)
        importance[i] = column_importance(importance_mode);
    uint8_t *want = NULL;
    for (int t = 0; t < n_tiers; t++) {
        uint8_t *got = guarded(bytes, (size_t)random_below(8));
        pl_quantize_job job = {type, x, rows, cols, importance_mode ? importance : NULL, got};
        tiers[t]->quantize_weights(&job);
        if (t == 0) {
            want = got;
            check_values(type, mode == W_RANDOM && !importance_mode, x, want, (int)n);
            continue;
        }
        for (size_t i = 0; i < bytes; i++)
            if (got[i] != want[i]) {
                fail(tiers[t], "byte %zu of %zu: %02x instead of %02x", i, bytes, got[i], want[i]);
                break;
            }
        guarded_free(tiers[t], got);
    }
    guarded_free(tiers[0], want);
    guarded_free(tiers[0], importance);
    guarded_free(tiers[0], x);
}

static const int stored_types[] = {PL_TYPE_F32, PL_TYPE_F16, PL_TYPE_BF16};

/* Bits of one float type; `damaged`: the place of one that is not finite, or -1. */
static void fill_stored(int type, uint8_t *src, int n, int damaged)
{
    for (int i = 0; i < n; i++) {
        int wide = type == PL_TYPE_F32;
        uint32_t exponent = wide ? 0x7f800000u : type == PL_TYPE_F16 ? 0x7c00u : 0x7f80u;
        uint32_t bits = (uint32_t)random_below(1 << 16) << 16 | (uint32_t)random_below(1 << 16);
        bits = (bits & exponent) == exponent ? bits & ~exponent : bits; /* a subnormal instead */
        bits |= i == damaged ? exponent : 0;
        memcpy(src + i * (wide ? 4 : 2), &bits, wide ? 4 : 2);
    }
}

static void check_read(int type, int n, int damaged)
{
    size_t size = type == PL_TYPE_F32 ? 4 : 2;
    uint8_t *src = guarded((size_t)n * size, size * (size_t)random_below(5));
    begin_case("read %s, %d, damaged %d", pl_type_name(type), n, damaged);
    fill_stored(type, src, n, damaged);
    for (int t = 0; t < n_tiers; t++) {
        float *got = guarded((size_t)n * 4, 4 * (size_t)random_below(5));
        if (tiers[t]->read_weights(type, src, n, got) != (damaged < 0))
            fail(tiers[t], "finite or not: wrong");
        if (type == PL_TYPE_F32 && tiers[t]->read_weights(type, src, n, NULL) != (damaged < 0))
            fail(tiers[t], "finite or not, only looked at: wrong");
        for (int i = 0; i < n; i++) {
            uint16_t half;
            uint32_t want, is;
            memcpy(&half, src + (size_t)i * 2, 2);
            float value = type == PL_TYPE_F16 ? pl_f16_to_f32(half) : pl_bf16_to_f32(half);
            memcpy(&want, type == PL_TYPE_F32 ? (const void *)(src + (size_t)i * 4) : &value, 4);
            memcpy(&is, got + i, 4);
            if (i != damaged && is != want) {
                fail(tiers[t], "value %d is %08x instead of %08x", i, is, want);
                break;
            }
        }
        guarded_free(tiers[t], got);
    }
    guarded_free(tiers[0], src);
}

void check_quantize_weights(void)
{
    for (int k = 0; k < COUNT(stored_types); k++)
        for (int n = 1; n < (quick ? 70 : 300); n += 1 + random_below(3)) {
            check_read(stored_types[k], n, -1);
            check_read(stored_types[k], n, random_below(n));
        }
    for (int k = 0; k < COUNT(types); k++)
        for (int mode = 0; mode < W_MODES; mode++)
            for (int importance = 0; importance < 4; importance++) {
                int blocks = quick ? 1 + random_below(2) : 1 + random_below(5), rows = 1 + random_below(quick ? 2 : 19);
                int block = pl_type_block_elements(types[k]);
                if (quick && (mode + importance) % 3)
                    continue;
                check_case(types[k], mode, rows, block == 1 ? 1 + random_below(70) : block * blocks, importance);
            }
}
