#include "weights.h"
#include "check.h"

/* Where the binary16 fields of a block are; -1: none. */
typedef struct {
    int type, d, min;
} half_fields;

static const half_fields halves[] = {
    {PL_TYPE_Q4_0, 0, -1},
    {PL_TYPE_Q4_1, 0, 2},
    {PL_TYPE_Q5_0, 0, -1},
    {PL_TYPE_Q5_1, 0, 2},
    {PL_TYPE_Q8_0, 0, -1},
    {PL_TYPE_IQ4_NL, 0, -1},
    {PL_TYPE_Q2_K, offsetof(pl_block_q2_k, d), offsetof(pl_block_q2_k, dmin)},
    {PL_TYPE_Q3_K, offsetof(pl_block_q3_k, d), -1},
    {PL_TYPE_Q4_K, offsetof(pl_block_q4_k, d), offsetof(pl_block_q4_k, dmin)},
    {PL_TYPE_Q5_K, offsetof(pl_block_q5_k, d), offsetof(pl_block_q5_k, dmin)},
    {PL_TYPE_Q6_K, offsetof(pl_block_q6_k, d), -1},
    {PL_TYPE_TQ1_0, offsetof(pl_block_tq1_0, d), -1},
    {PL_TYPE_TQ2_0, offsetof(pl_block_tq2_0, d), -1},
    {PL_TYPE_IQ2_XXS, 0, -1},
    {PL_TYPE_IQ2_XS, 0, -1},
    {PL_TYPE_IQ2_S, 0, -1},
    {PL_TYPE_IQ3_XXS, 0, -1},
    {PL_TYPE_IQ3_S, 0, -1},
    {PL_TYPE_IQ1_S, 0, -1},
    {PL_TYPE_IQ4_XS, 0, -1},
};

static const int all_types[] = {
#define PL_FLOAT_TYPE(NAME, ...) PL_TYPE_##NAME,
#define PL_QUANTIZED_TYPE(NAME, ...) PL_TYPE_##NAME,
#include "types/types.def"
};

int weight_type(int k) { return k < COUNT(all_types) ? all_types[k] : -1; }

void set_random_codebooks(void)
{
    for (int i = 0; i < COUNT(all_types); i++) {
        int type = all_types[i];
        int n = pl_codebook_missing(type), one = type == PL_TYPE_IQ1_S || type == PL_TYPE_IQ1_M;
        if (n <= 0)
            continue;
        int8_t *values = malloc((size_t)n);
        int three = type == PL_TYPE_IQ3_XXS || type == PL_TYPE_IQ3_S;
        int8_t levels[8]; /* as many different values as a codebook may have */
        for (int j = 0; j < 8; j++)
            levels[j] = (int8_t)(one ? j % 3 - 1 : random_below(64));
        for (int j = 0; j < n; j++)
            values[j] = levels[random_below(one || type == PL_TYPE_IQ2_S ? 3 : three ? 8 : 4)];
        int8_t first = values[0];
        values[0] = one ? 2 : 64; /* no codebook has that, and kernels have no room for it */
        if (pl_set_codebook(type, values, n) != PL_EINVAL)
            abort();
        values[0] = first;
        if (pl_set_codebook(type, values, n) != PL_OK)
            abort();
        free(values);
    }
}

static double magnitude_of(weight_mode mode)
{
    switch (mode) {
    case W_ZERO: return 0.0;
    case W_TINY: return 0x1p-24 * random_below(1024); /* subnormal in binary16 */
    case W_HUGE: return 65504.0;
    default: return 1e-3 + 0.1 * fabs((double)random_float());
    }
}
static double value_of(weight_mode mode)
{
    if (mode == W_MIXED)
        mode = (weight_mode)random_below(W_HUGE + 1);
    double x = magnitude_of(mode);
    return random_bits() & 1 ? -x : x;
}

static void put_half(uint8_t *at, double x)
{
    uint16_t h = reference_f16(x);
    memcpy(at, &h, 2);
}

/* IQ1_M spreads its scale over the top nibbles of four words. */
static void put_iq1_m_scale(pl_block_iq1_m *block, double x)
{
    uint16_t h = reference_f16(x);
    for (int i = 0; i < 4; i++)
        block->scales[i] = (uint16_t)((block->scales[i] & 0x0fff) | (h >> (4 * i) & 15) << 12);
}

static void put_scales(int type, weight_mode mode, uint8_t *block)
{
    for (int i = 0; i < COUNT(halves); i++)
        if (halves[i].type == type) {
            put_half(block + halves[i].d, value_of(mode));
            if (halves[i].min >= 0)
                put_half(block + halves[i].min, value_of(mode));
        }
    if (type == PL_TYPE_IQ1_M)
        put_iq1_m_scale((pl_block_iq1_m *)(void *)block, value_of(mode));
    if (type == PL_TYPE_MXFP4) { /* 2^(e - 127) */
        if (mode == W_MIXED)
            mode = (weight_mode)random_below(W_HUGE + 1);
        block[0] = (uint8_t)(mode == W_ZERO   ? 0
                             : mode == W_TINY ? 1 + random_below(20)
                             : mode == W_HUGE ? 150
                                              : 115 + random_below(12));
    }
}

static void random_floats(int type, weight_mode mode, uint8_t *out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float x = (float)value_of(mode);
        uint16_t h = type == PL_TYPE_F16 ? reference_f16(x) : reference_bf16(x);
        if (type == PL_TYPE_F32)
            memcpy(out + 4 * i, &x, 4);
        else
            memcpy(out + 2 * i, &h, 2);
    }
}

void random_weights(int type, weight_mode mode, uint8_t *out, int64_t n)
{
    const pl_type_info *info = pl_type_find(type);
    if (pl_panel_is_float(type)) {
        random_floats(type, mode, out, n);
        return;
    }
    static const uint8_t low[] = {0x00, 0x80}, high[] = {0xff, 0x7f};
    uint8_t code = mode == W_LOW_CODES ? low[random_below(2)] : high[random_below(2)];
    for (int64_t b = 0; b < n / info->block_elements; b++, out += info->block_bytes) {
        for (int i = 0; i < info->block_bytes; i++)
            out[i] = mode == W_LOW_CODES || mode == W_HIGH_CODES ? code : (uint8_t)random_bits();
        put_scales(type, mode, out);
    }
}
