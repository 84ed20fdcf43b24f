/* store_k and store_v: every KV type against quantization written down from its definition, bit for bit. */
#include "check.h"
#include "kv_reference.h"

const int kv_types[] = {
#define PL_KV_TYPE(NAME, ...) PL_TYPE_##NAME,
#include "exec/kv_types.def"
};

static int is_quantized(int type) { return type == PL_TYPE_Q8_0 || type == PL_TYPE_Q4_0; }

int kv_width(const pl_kv_tile *tile)
{
    int unit = is_quantized(tile->type) ? 32 : 16;
    return (tile->head_dim + unit - 1) / unit * unit;
}

static float number_at(int type, const uint8_t *bytes, int64_t index)
{
    float value;
    uint16_t half;
    if (type == PL_TYPE_F32) {
        memcpy(&value, bytes + 4 * index, 4);
        return value;
    }
    memcpy(&half, bytes + 2 * index, 2);
    return type == PL_TYPE_F16 ? pl_f16_to_f32(half) : pl_bf16_to_f32(half);
}

float kv_key(const pl_kv_tile *tile, const uint8_t *bytes, int slot, int dim)
{
    if (!is_quantized(tile->type))
        return number_at(tile->type, bytes, (int64_t)dim * PL_TILE + slot);
    float scale = number_at(PL_TYPE_F16, bytes + tile->scales, dim / 32 * PL_TILE + slot);
    if (tile->type == PL_TYPE_Q8_0)
        return (float)(int8_t)bytes[dim * PL_TILE + slot] * scale;
    uint8_t pair = bytes[dim / 2 * PL_TILE + slot]; /* even dims in the low nibble */
    return (float)((dim % 2 ? pair >> 4 : pair & 15) - 8) * scale;
}

float kv_value(const pl_kv_tile *tile, const uint8_t *bytes, int slot, int dim)
{
    int width = kv_width(tile);
    if (!is_quantized(tile->type))
        return number_at(tile->type, bytes, (int64_t)slot * width + dim);
    float scale = number_at(PL_TYPE_F16, bytes + tile->scales, slot * (width / 32) + dim / 32);
    if (tile->type == PL_TYPE_Q8_0)
        return (float)(int8_t)bytes[slot * width + dim] * scale;
    uint8_t pair = bytes[slot * width / 2 + dim / 32 * 16 + dim % 16]; /* element l with l + 16, as in Q4_0 */
    return (float)((dim % 32 >= 16 ? pair >> 4 : pair & 15) - 8) * scale;
}

/* The code of x, -8 to 7, for a scale. */
static double code_of(float x, float d) { return fmin(7, fmax(-8, floor((double)(x * (1.0f / d) + 8.5f)) - 8)); }

/* The scale of up to 32 values: what the largest takes, and for 4 bits then the one that is best for the codes that gives. */
static float scale_of(int type, const float *x, int n)
{
    int top = 0;
    for (int i = 1; i < n; i++)
        if (fabsf(x[i]) > fabsf(x[top]))
            top = i;
    if (type == PL_TYPE_Q8_0)
        return fabsf(x[top]) / 127.0f;
    const float d = x[top] / -8.0f;
    double products = 0.0, squares = 0.0;
    for (int i = 0; i < n && fabsf(d) >= 0x1p-126f; i++) {
        products += code_of(x[i], d) * (double)x[i];
        squares += code_of(x[i], d) * code_of(x[i], d);
    }
    return squares > 0.0 ? (float)(products / squares) : d;
}

/* 32 values as Q8_0 or Q4_0 rounds them (the scale as binary16, the codes from the float32 scale). */
static void expect_block(int type, const float *x, float *out)
{
    float d = scale_of(type, x, 32);
    float scale = pl_f16_to_f32(reference_f16((double)d));
    for (int i = 0; i < 32; i++) {
        double code = 0;
        if (fabsf(d) >= 0x1p-126f) /* smaller ones are zero in binary16 */
            code = type == PL_TYPE_Q8_0 ? rint((double)(x[i] * (1.0f / d))) : code_of(x[i], d);
        out[i] = (float)code * scale;
    }
}

void kv_expected(int type, int head_dim, const float *x, float *out)
{
    for (int i = 0; i < head_dim; i += 32) {
        float block[32] = {0}, rounded[32];
        int n = head_dim - i < 32 ? head_dim - i : 32;
        memcpy(block, x + i, sizeof(float) * (size_t)n);
        if (is_quantized(type))
            expect_block(type, block, rounded);
        else
            for (int j = 0; j < n; j++)
                rounded[j] = type == PL_TYPE_F32   ? block[j]
                             : type == PL_TYPE_F16 ? pl_f16_to_f32(reference_f16((double)block[j]))
                                                   : pl_bf16_to_f32(reference_bf16(block[j]));
        memcpy(out + i, rounded, sizeof(float) * (size_t)n);
    }
}

/* Values that stand on the edges of the formats, and ordinary ones. */
static float hard_value(int mode)
{
    static const float edges[] = {0.0f,           -0.0f,        0x1p-24f,  0x1p-25f,   0x1.8p-25f,  0x1.8p-24f,
                                  0x1.ffcp-15f,   0x1.ffep-15f, 65504.0f,  65519.0f,   -65519.996f, 1.00048828125f,
                                  1.0014648f,     2049.0f,      -2051.0f,  0x1.01p0f,  0x1.03p0f,   0x1.008p0f,
                                  -0x1.00fffep0f, 0x1p-149f,    0x1p-126f, 0x1.8p-130f};
    if (mode == 1)
        return edges[random_below(COUNT(edges))];
    if (mode == 2)
        return (float)(random_below(17) - 8) * 0.5f; /* ties */
    if (mode == 3)
        return random_float() * 0x1p-130f;
    return random_float() * 4;
}

typedef void store_fn(const pl_kv_tile *, uint8_t *, int, const float *);
typedef float read_fn(const pl_kv_tile *, const uint8_t *, int, int);

static void check_store(const pl_kernels *tier, const pl_kv_tile *tile, store_fn *store, read_fn *read, const char *what,
                        const float *x)
{
    uint8_t *bytes = guarded((size_t)tile->bytes, 0);
    float want[1024];
    memset(bytes, 0, (size_t)tile->bytes);
    for (int slot = 0; slot < PL_TILE; slot++) /* every slot, so that a store that hits its neighbour shows */
        store(tile, bytes, slot * 7 % PL_TILE, x + slot * 7 % PL_TILE * tile->head_dim);
    for (int slot = 0; slot < PL_TILE; slot++) {
        kv_expected(tile->type, tile->head_dim, x + slot * tile->head_dim, want);
        for (int i = 0; i < tile->head_dim; i++) {
            float got = read(tile, bytes, slot, i);
            if (got != want[i]) {
                fail(tier, "%s slot %d dim %d: %.9g stored as %.9g, expected %.9g", what, slot, i,
                     (double)x[slot * tile->head_dim + i], (double)got, (double)want[i]);
                slot = PL_TILE;
                break;
            }
        }
    }
    guarded_free(tier, bytes);
}

static void check_nan(const pl_kernels *tier, const pl_kv_tile *tile)
{
    uint8_t *bytes = guarded((size_t)tile->bytes, 0);
    float *x = guarded(sizeof(float) * (size_t)tile->head_dim, 4);
    memset(bytes, 0, (size_t)tile->bytes);
    for (int i = 0; i < tile->head_dim; i++)
        x[i] = i % 2 ? NAN : INFINITY;
    tier->store_v(tile, bytes, 3, x);
    for (int i = 0; i < tile->head_dim; i++) {
        float got = kv_value(tile, bytes, 3, i);
        if (i % 2 ? !isnan(got) : got != INFINITY)
            fail(tier, "%s stored as %g", i % 2 ? "NaN" : "inf", (double)got);
    }
    guarded_free(tier, x);
    guarded_free(tier, bytes);
}

/* One element that is inf or NaN makes its block of 32 NaN, and no other. */
static void check_spoilt(const pl_kernels *tier, const pl_kv_tile *tile, store_fn *store, read_fn *read, const float *values)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    const int dim = tile->head_dim, at = random_below(dim);
    uint8_t *bytes = guarded((size_t)tile->bytes, 0);
    float *x = guarded(sizeof(float) * (size_t)dim, 4), want[1024];
    memset(bytes, 0, (size_t)tile->bytes);
    memcpy(x, values, sizeof(float) * (size_t)dim);
    kv_expected(tile->type, dim, x, want);
    x[at] = bad[random_below(COUNT(bad))];
    store(tile, bytes, 3, x);
    for (int i = 0; i < dim; i++) {
        float got = read(tile, bytes, 3, i);
        if (i / 32 == at / 32 ? !isnan(got) : got != want[i])
            fail(tier, "%g at %d: dim %d stored as %g", (double)x[at], at, i, (double)got);
    }
    guarded_free(tier, x);
    guarded_free(tier, bytes);
}

/* What each code should be: the nearest to what is wanted of its dim, given the errors of those before it. Tiers may round
 * sums differently, so a code may be as far off as those allow. */
static void check_rounded(const pl_kernels *tier, const pl_kv_tile *tile, const uint8_t *bytes, int slot, const float *x,
                          const float *factors)
{
    const int dim = tile->head_dim, stride = PL_KEY_STRIDE(dim);
    double error[PL_SHAPED_DIM];
    for (int d = 0; d < dim; d++) {
        const int block = d & ~31;
        float scale = number_at(PL_TYPE_F16, bytes + tile->scales, d / 32 * PL_TILE + slot);
        float best = scale_of(PL_TYPE_Q4_0, x + block, dim - block < 32 ? dim - block : 32);
        double want = (double)x[d], slack = 0.0;
        for (int i = 0; i < d; i++) {
            want += (double)factors[i * stride + d] * error[i];
            slack += fabs((double)factors[i * stride + d] * error[i]);
        }
        int code = bytes[d / 2 * PL_TILE + slot] >> (d % 2 ? 4 : 0) & 15;
        double target = best != 0.0f ? want / (double)best + 8.0 : 8.0;
        target = target < 0.0 ? 0.0 : target > 15.0 ? 15.0 : target;
        error[d] = (double)x[d] - (code - 8) * (double)scale;
        const double allowed = 0.5001 + 1e-5 * slack / (fabs((double)best) + 1e-30);
        if (fabs(code - target) > allowed || fabsf(scale - best) > 6e-4f * fabsf(scale)) {
            fail(tier, "slot %d dim %d: code %d, expected %.6f; scale %g of %g", slot, d, code, target, (double)scale,
                 (double)best);
            return;
        }
    }
}

/* Keys one by one, and as many at once as `n`, in slots all over a tile: the same bits, and the right ones. */
static void check_store_keys(const pl_kernels *tier, int dim, int n)
{
    pl_kv_tile tile;
    pl_kv_tile_init(&tile, PL_TYPE_Q4_0, dim);
    const int stride = PL_KEY_STRIDE(dim);
    begin_case("store_keys head_dim=%d keys=%d", dim, n);
    float *x = guarded(sizeof(float) * (size_t)(n * dim), 4), *factors = guarded(sizeof(float) * (size_t)(dim * stride), 64);
    uint8_t *single = guarded((size_t)tile.bytes, 64), *together = guarded((size_t)tile.bytes, 64);
    pl_key_store keys[PL_STORE_KEYS];
    memset(single, 0, (size_t)tile.bytes);
    memset(together, 0, (size_t)tile.bytes);
    memset(factors, 0, sizeof(float) * (size_t)(dim * stride));
    for (int i = 0; i < dim; i++)
        for (int j = i; j < dim; j++)
            factors[i * stride + j] = i == j ? 1.0f : random_float() * 0.4f;
    for (int i = 0; i < n * dim; i++)
        x[i] = i / dim % 4 == 3 ? 0.0f : random_float() * 3; /* a key of zeros among them */
    for (int k = 0; k < n; k++) {
        keys[k] = (pl_key_store){single, k * 7 % PL_TILE, x + k * dim};
        tier->store_keys(&tile, factors, &keys[k], 1);
        check_rounded(tier, &tile, single, keys[k].slot, keys[k].key, factors);
        keys[k].tile = together;
    }
    tier->store_keys(&tile, factors, keys, n);
    if (memcmp(single, together, (size_t)tile.bytes) != 0)
        fail(tier, "keys stored together are other than one by one");
    guarded_free(tier, together);
    guarded_free(tier, single);
    guarded_free(tier, factors);
    guarded_free(tier, x);
}

void check_kv(void)
{
    static const int shaped[] = {8, 24, 40, 64, 80, 128, 256};
    for (int i = 0; i < n_tiers; i++)
        for (int d = 0; d < COUNT(shaped); d++)
            for (int n = 1; n <= PL_STORE_KEYS; n += 5)
                check_store_keys(tiers[i], shaped[d], n);

    static const int dims[] = {8, 16, 24, 32, 40, 64, 80, 96, 128, 192, 256, 576};
    for (int k = 0; k < COUNT(kv_types); k++)
        for (int d = 0; d < COUNT(dims); d++)
            for (int mode = 0; mode < 4; mode++) {
                if (quick && random_below(3))
                    continue;
                pl_kv_tile tile;
                pl_kv_tile_init(&tile, kv_types[k], dims[d]);
                begin_case("kv %s head_dim=%d values=%d", pl_type_name(kv_types[k]), dims[d], mode);
                float *x = guarded(sizeof(float) * (size_t)(PL_TILE * dims[d]), 4);
                for (int i = 0; i < PL_TILE * dims[d]; i++)
                    x[i] = hard_value(mode);
                for (int i = 0; i < n_tiers; i++) {
                    check_store(tiers[i], &tile, tiers[i]->store_k, kv_key, "key", x);
                    check_store(tiers[i], &tile, tiers[i]->store_v, kv_value, "value", x);
                    if (is_quantized(tile.type)) {
                        check_spoilt(tiers[i], &tile, tiers[i]->store_k, kv_key, x);
                        check_spoilt(tiers[i], &tile, tiers[i]->store_v, kv_value, x);
                    } else
                        check_nan(tiers[i], &tile);
                }
                guarded_free(tiers[0], x);
            }
}
