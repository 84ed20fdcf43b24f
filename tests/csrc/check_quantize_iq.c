/* The codebook types' quantizers: every tier must write the bytes that the scalar one writes, and nothing after them;
 * what is written decodes to finite numbers. */
#include "check.h"
#include "weights.h"

static const int types[] = {PL_TYPE_IQ1_S, PL_TYPE_IQ1_M,   PL_TYPE_IQ2_XXS, PL_TYPE_IQ2_XS,
                            PL_TYPE_IQ2_S, PL_TYPE_IQ3_XXS, PL_TYPE_IQ3_S};

enum { X_RANDOM, X_ZERO, X_CONSTANT, X_TERNARY, X_SPIKE, X_TINY, X_DENORMAL, X_HUGE, X_SIZES, X_MODES };

static float element(int mode, int i)
{
    switch (mode) {
    case X_ZERO: return i % 2 ? -0.0f : 0.0f;
    case X_CONSTANT: return 0.75f;
    case X_TERNARY: return (float)(random_below(3) - 1);
    case X_SPIKE: return i % 301 == 7 ? 1e5f : random_float() * 1e-3f;
    case X_TINY: return random_float() * 0x1p-21f; /* d near binary16's smallest */
    case X_DENORMAL: return random_float() * 0x1p-126f;
    case X_HUGE: return random_float() * 3.4e38f;
    case X_SIZES: return random_float() * (i / 16 % 3 ? 1e-6f : 1e2f);
    default: return random_float() * random_float() * random_float();
    }
}

static float importance_of(int mode)
{
    switch (mode) {
    case 1: return random_below(2) ? 1.0f : 0.0f;
    case 2: return 0.0f;
    case 3: return random_below(9) ? 1e-38f : 3e38f;
    default: return 1.5f + random_float();
    }
}

static void check_finite(int type, const uint8_t *packed, int n)
{
    float *values = malloc(sizeof(float) * (size_t)n);
    if (pl_dequantize(type, packed, values, n) != PL_OK)
        fail(tiers[0], "does not decode");
    for (int i = 0; i < n; i++)
        if (!isfinite(values[i])) {
            fail(tiers[0], "element %d is %g", i, (double)values[i]);
            break;
        }
    free(values);
}

static void check_one(int type, int mode, int importance_mode, int rows, int cols)
{
    size_t n = (size_t)rows * (size_t)cols, bytes = n / 256 * (size_t)pl_type_block_bytes(type);
    float *x = guarded(n * 4, 4 * (size_t)random_below(16)), *importance = guarded((size_t)cols * 4, 4);
    begin_case("%s, values %d, importance %d, %d x %d", pl_type_name(type), mode, importance_mode, rows, cols);
    for (size_t i = 0; i < n; i++)
        x[i] = element(mode, (int)i);
    for (int i = 0; i < cols; i++)
        importance[i] = importance_of(importance_mode);
    uint8_t *want = guarded(bytes, 1);
    for (int t = 0; t < n_tiers; t++) {
        uint8_t *got = t ? guarded(bytes, (size_t)random_below(8)) : want;
        pl_quantize_job job = {type, x, rows, cols, importance_mode == 4 ? NULL : importance, got};
        tiers[t]->quantize_weights(&job);
        if (t == 0)
            check_finite(type, want, (int)n);
        for (size_t i = 0; t && i < bytes; i++)
            if (got[i] != want[i]) {
                fail(tiers[t], "byte %zu of %zu: %02x instead of %02x", i, bytes, got[i], want[i]);
                break;
            }
        if (t)
            guarded_free(tiers[t], got);
    }
    guarded_free(tiers[0], want);
    guarded_free(tiers[0], importance);
    guarded_free(tiers[0], x);
}

void check_quantize_iq(void)
{
    set_random_codebooks();
    for (int k = 0; k < COUNT(types); k++)
        for (int mode = 0; mode < X_MODES; mode++)
            for (int importance = 0; importance < 5; importance++)
                if (!quick || (mode + importance + k) % 4 == 0)
                    check_one(types[k], mode, importance, 1 + random_below(2), 256 * (1 + random_below(quick ? 1 : 3)));
}
