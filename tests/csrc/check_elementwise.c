/* quantize (bit for bit), rms_norm, layer_norm, gelu, silu_mul, add and rope against double precision; rotate
 * bit for bit. */
#include "check.h"

static size_t floats(int n) { return sizeof(float) * (size_t)n; }
static size_t odd(void) { return 4 * (size_t)random_below(16); }

static float *random_row(int n, float scale)
{
    float *x = guarded(floats(n), odd());
    for (int i = 0; i < n; i++)
        x[i] = random_float() * scale;
    return x;
}

/* ---- quantize ---- */

enum { Q_RANDOM, Q_SPIKE, Q_NEAR_SPIKE, Q_ZERO, Q_TIES, Q_ONE, Q_TINY, Q_DENORMAL, Q_HUGE, Q_MODES };

static float quantize_input(int mode, int i)
{
    switch (mode) {
    case Q_ZERO: return i % 2 ? -0.0f : 0.0f;
    case Q_SPIKE: return i == 9 ? -90.0f : random_float() * 5;
    case Q_NEAR_SPIKE: return i == 17 ? 8.0f + random_float() : random_float();    /* on both sides of the threshold */
    case Q_TIES: return i == 5 ? 127.0f : (float)(random_below(253) - 126) + 0.5f; /* d = 1: halves go to even */
    case Q_ONE: return i == 31 ? -3.25f : 0.0f;
    case Q_TINY: return random_float() * 0x1p-115f;
    case Q_DENORMAL: return random_float() * 0x1p-126f;
    case Q_HUGE: return random_float() * 3e38f;
    default: return random_float() * 10;
    }
}

static double most_of(const double *x)
{
    double most = 0;
    for (int i = 0; i < 32; i++)
        most = fmax(most, fabs(x[i]));
    return most;
}

static void check_sums(const pl_kernels *tier, const pl_q8 *got, float factor)
{
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < 32; i++)
        sums[i / 16] += got->q[i];
    if (got->sum[0] != sums[0] || got->sum[1] != sums[1] || got->s != factor * (float)(sums[0] + sums[1]))
        fail(tier, "sums %d %d, s %.9g", got->sum[0], got->sum[1], (double)got->s);
    int32_t pairs[2][2] = {{0, 0}, {0, 0}};
    for (int i = 0; i < 32; i++)
        pairs[i / 16][i / 2 % 2] += got->q[i];
    for (int i = 0; i < 4 && strcmp(tier->name, "avx2") == 0; i++) /* the only one that reads them */
        if (got->pair_sum[i / 2][i % 2] != pairs[i / 2][i % 2])
            fail(tier, "sum %d of pairs is %d, not %d", i, got->pair_sum[i / 2][i % 2], pairs[i / 2][i % 2]);
}

/* Whether one value holds most of the energy: 1, 0, or -1 when rounding may decide. */
static int dominated(const float *x, float dominant)
{
    double most = 0, energy = 0;
    for (int i = 0; i < 32; i++) {
        most = fmax(most, fabs((double)x[i]));
        energy += (double)x[i] * (double)x[i];
    }
    double share = most * most / energy; /* squares of floats this large or small are not floats */
    if (!(most < 1e17 && most > 1e-16 && fabs(share - (double)dominant) > 1e-5))
        return -1;
    return share > (double)dominant;
}

/* One block: codes to the nearest step of its chunk's scale, after its residual block if it has one. -> the scale that its
 * values ask of the chunk. */
static double check_block(const pl_kernels *tier, const float *x, const pl_q8 *got, float scale, int residual_offset, float dominant)
{
    double left[32], slack[32], d = (double)scale * (double)pl_q8_factor[got->step], largest;
    int expected = dominated(x, dominant);
    if (got->step >= PL_Q8_STEPS || (got->residual_offset && got->residual_offset != residual_offset))
        fail(tier, "step %d, residual offset %d; residual blocks are %d further on", got->step, got->residual_offset,
             residual_offset);
    if (expected >= 0 && (got->residual_offset != 0) != expected)
        fail(tier, "residual offset %d, but a value that dominates: %d", got->residual_offset, expected);
    for (int i = 0; i < 32; i++)
        left[i] = x[i], slack[i] = 0;
    largest = most_of(left);
    if (got->residual_offset) {
        const pl_q8 *residual = got + got->residual_offset;
        double large = (double)residual->scale;
        check_sums(tier, residual, 1.0f);
        const int single = dominant >= 0.5f, k = residual->residual_mask - 1;
        if (single ? k < 0 || k > 31 || abs(residual->q[k]) != 127 || fabs(left[k]) != largest : k != -1)
            fail(tier, "residual block: its code is that of k %d", k);
        for (int i = 0; i < 32; i++) {
            const int other = single && i != k; /* than the value that is alone in it */
            left[i] -= residual->q[i] * large;
            slack[i] = fabs((double)x[i]) * 0x1p-22;
            if (other && residual->q[i])
                fail(tier, "residual block of k %d: another code, %d, at %d", k, residual->q[i], i);
            if (!other && !(fabs(left[i]) <= 0.5 * large * 1.0001 + slack[i]))
                fail(tier, "residual block, element %d: %.9g of %.9g is left", i, left[i], (double)x[i]);
        }
        if (residual->step)
            fail(tier, "residual block: step %d", residual->step);
    } else if (!is_poison(got + residual_offset, sizeof *got))
        fail(tier, "wrote a residual block that it does not name");
    check_sums(tier, got, pl_q8_factor[got->step]);
    for (int i = 0; i < 32; i++)
        if (!(fabs(left[i] - got->q[i] * d) <= 0.5001 * d + slack[i]) && d > 0x1p-120)
            fail(tier, "element %d: %.9g as %d times %.9g", i, left[i], got->q[i], d);
    double most = most_of(left);
    if (got->step + 1 < PL_Q8_STEPS && d > 0x1p-118 && !got->residual_offset &&
        most * 1.0001 + slack[0] < 127 * (double)scale * (double)pl_q8_factor[got->step + 1])
        fail(tier, "step %d, but %.9g is the largest of scale %.9g", got->step, most, (double)scale);
    return most / 127;
}

static void check_chunk(const pl_kernels *tier, const float *x, int n, const pl_q8 *got, int residual_offset, float dominant)
{
    double asked = 0;
    for (int b = 0; b < n; b++) {
        int16_t sum_x8[2];
        asked = fmax(asked, check_block(tier, x + 32 * b, got + b, got->scale, residual_offset, dominant));
        if (got[b].residual_mask != got->residual_mask || (got->residual_mask >> b & 1) != (got[b].residual_offset != 0) ||
            got->residual_mask >> n)
            fail(tier, "block %d: residual offset %d, but residual blocks %x of the chunk's %x", b, got[b].residual_offset,
                 got[b].residual_mask, got->residual_mask);
        if (b % 2 == 0)
            continue;
        reference_sum_x8(got + b - 1, sum_x8);
        if (memcmp(got[b].sum_x8, sum_x8, sizeof sum_x8))
            fail(tier, "block %d: sum_x8 %d %d, not %d %d", b, got[b].sum_x8[0], got[b].sum_x8[1], sum_x8[0], sum_x8[1]);
    }
    double rounding = 0; /* of what residual blocks leave */
    for (int i = 0; got->residual_mask && i < 32 * n; i++)
        rounding = fmax(rounding, fabs((double)x[i]) * 0x1p-22 / 127);
    if (!(fabs((double)got->scale - asked) <= asked * 1e-4 + rounding) && asked > 0x1p-125)
        fail(tier, "scale %.9g, the largest value asks for %.9g", (double)got->scale, asked);
}

static void check_quantize(int mode, int n_blocks, int gap, float dominant)
{
    begin_case("quantize blocks=%d gap=%d values=%d dominant=%g", n_blocks, gap, mode, (double)dominant);
    float *x = guarded(floats(32 * n_blocks), odd());
    for (int i = 0; i < 32 * n_blocks; i++)
        x[i] = quantize_input(mode, i % 32) * (mode == Q_HUGE ? 1.0f : exp2f((float)(i / 32 % 5 - 4)));
    for (int k = 0; k < n_tiers; k++) {
        int residual_offset = n_blocks + gap;
        pl_q8 *out = guarded(sizeof(pl_q8) * (size_t)(n_blocks + residual_offset), 4 * (size_t)random_below(4));
        tiers[k]->quantize(x, n_blocks, residual_offset, dominant, out);
        for (int b = 0; b < n_blocks; b += PL_CHUNK_BLOCKS)
            check_chunk(tiers[k], x + 32 * b, n_blocks - b < PL_CHUNK_BLOCKS ? n_blocks - b : PL_CHUNK_BLOCKS, out + b,
                        residual_offset, dominant);
        if (!is_poison(out + n_blocks, sizeof(pl_q8) * (size_t)gap))
            fail(tiers[k], "wrote between the blocks");
        pl_q8 *apart = guarded(sizeof(pl_q8) * (size_t)(n_blocks + residual_offset), 0);
        for (int b = 0; b < n_blocks; b += PL_CHUNK_BLOCKS)
            tiers[k]->quantize(x + 32 * b, n_blocks - b < PL_CHUNK_BLOCKS ? n_blocks - b : PL_CHUNK_BLOCKS, residual_offset, dominant,
                               apart + b);
        if (memcmp(out, apart, sizeof(pl_q8) * (size_t)(n_blocks + residual_offset)))
            fail(tiers[k], "other blocks than chunk by chunk");
        guarded_free(tiers[k], apart);
        guarded_free(tiers[k], out);
    }
    guarded_free(tiers[0], x);
}

/* An inf or a NaN anywhere in a block must show in its chunk's scale, and so in every product; other chunks know nothing of it. */
static void check_quantize_nan(int at, float value)
{
    enum { CHUNKS = 3, BLOCKS = CHUNKS * PL_CHUNK_BLOCKS };
    const int bad = random_below(BLOCKS);
    begin_case("quantize with %g at %d of block %d", (double)value, at, bad);
    float *x = random_row(32 * BLOCKS, 3);
    x[32 * bad + at] = value;
    for (int k = 0; k < n_tiers; k++) {
        pl_q8 *out = guarded(2 * BLOCKS * sizeof(pl_q8), 0);
        tiers[k]->quantize(x, BLOCKS, BLOCKS, PL_Q8_DOMINANT, out);
        for (int c = 0; c < CHUNKS; c++)
            if (!isnan(out[c * PL_CHUNK_BLOCKS].scale) == (c == bad / PL_CHUNK_BLOCKS))
                fail(tiers[k], "the scale of chunk %d is %g", c, (double)out[c * PL_CHUNK_BLOCKS].scale);
        guarded_free(tiers[k], out);
    }
    guarded_free(tiers[0], x);
}

/* ---- one row in, one row out ---- */

static void compare(const pl_kernels *tier, int i, float got, double want, double bound)
{
    if (!(fabs((double)got - want) <= bound))
        fail(tier, "element %d: %.9g, expected %.9g within %.3g", i, (double)got, want, bound);
}

static void check_rms_norm(int n, float scale)
{
    int padded = (n + 15) / 16 * 16;
    begin_case("rms_norm n=%d scale=%g", n, (double)scale);
    float *x = random_row(padded, scale), *weight = random_row(padded, 2), eps = 1e-5f;
    double squares = 0;
    for (int i = 0; i < n; i++)
        squares += (double)x[i] * x[i];
    for (int i = n; i < padded; i++)
        x[i] = weight[i] = 0;
    double factor = 1 / sqrt(squares / n + (double)eps);
    for (int k = 0; k < n_tiers; k++) {
        float *y = guarded(floats(padded), odd());
        tiers[k]->rms_norm(x, weight, eps, n, y);
        for (int i = 0; i < padded; i++) { /* all addends are positive: the sum's relative error is at most n roundings */
            double want = x[i] * factor * weight[i];
            compare(tiers[k], i, y[i], want, fabs(want) * (8 + n) * 0x1p-24 + 0x1p-149);
        }
        memcpy(y, x, floats(padded)); /* in place */
        float *apart = guarded(floats(padded), 0);
        tiers[k]->rms_norm(x, weight, eps, n, apart);
        tiers[k]->rms_norm(y, weight, eps, n, y);
        if (memcmp(y, apart, floats(padded)) != 0)
            fail(tiers[k], "in place: other bits");
        guarded_free(tiers[k], apart);
        guarded_free(tiers[k], y);
    }
    guarded_free(tiers[0], x);
    guarded_free(tiers[0], weight);
}

static void check_layer_norm(int n, float scale)
{
    begin_case("layer_norm n=%d scale=%g", n, (double)scale);
    int padded = (n + 15) / 16 * 16;
    float *x = guarded(floats(padded), odd()), *weight = guarded(floats(padded), odd()), *bias = guarded(floats(padded), odd());
    const float eps = 1e-5f;
    double mean = 0, variance = 0, most = 0;
    for (int i = 0; i < padded; i++) {
        x[i] = i < n ? (random_float() + 0.5f) * scale : 0;
        weight[i] = i < n ? random_float() : 0;
        bias[i] = i < n ? random_float() : 0;
        mean += (double)x[i] / n;
        most = fmax(most, fabs((double)x[i]));
    }
    for (int i = 0; i < n; i++)
        variance += ((double)x[i] - mean) * ((double)x[i] - mean) / n;
    for (int k = 0; k < n_tiers; k++)
        for (int with_bias = 0; with_bias < 2; with_bias++) {
            float *y = guarded(floats(padded), odd());
            tiers[k]->layer_norm(x, weight, with_bias ? bias : NULL, eps, n, y);
            for (int i = 0; i < padded; i++) {
                double factor = weight[i] / sqrt(variance + (double)eps), add = with_bias ? (double)bias[i] : 0;
                double want = i < n ? ((double)x[i] - mean) * factor + add : 0;
                compare(tiers[k], i, y[i], want, (most * fabs(factor) + fabs(add)) * 0x1p-20);
            }
            guarded_free(tiers[k], y);
        }
    guarded_free(tiers[0], x);
    guarded_free(tiers[0], weight);
    guarded_free(tiers[0], bias);
}

static void check_gelu(int n, float scale)
{
    begin_case("gelu n=%d scale=%g", n, (double)scale);
    float *x = random_row(n, scale);
    for (int k = 0; k < n_tiers; k++)
        for (int approximate = 0; approximate < 2; approximate++) {
            float *y = guarded(floats(n), odd());
            tiers[k]->gelu(x, approximate, y, n);
            for (int i = 0; i < n; i++) {
                double v = x[i], u = 0.7978845608028654 * (v + 0.044715 * v * v * v);
                double want = approximate ? v / (1 + exp(-2 * u)) : v * erfc(-v * 0.7071067811865476) / 2;
                compare(tiers[k], i, y[i], want, fabs(v) * 2.5e-7 + fabs(want) * 0x1p-20);
            }
            guarded_free(tiers[k], y);
        }
    guarded_free(tiers[0], x);
}

static void check_silu_add(int n, float scale)
{
    begin_case("silu_mul, add n=%d scale=%g", n, (double)scale);
    float *gate = random_row(n, scale), *up = random_row(n, 3);
    for (int k = 0; k < n_tiers; k++) {
        float *y = guarded(floats(n), odd()), *sum = guarded(floats(n), odd());
        tiers[k]->silu_mul(gate, up, y, n);
        tiers[k]->add(gate, up, sum, n);
        for (int i = 0; i < n; i++) {
            double want = gate[i] / (1 + exp(-(double)gate[i])) * up[i]; /* e^88 is the largest used: absolute 1e-35 */
            compare(tiers[k], i, y[i], want, fabs(want) * 0x1p-20 + 1e-35);
            compare(tiers[k], i, sum[i], (double)(gate[i] + up[i]), 0);
        }
        tiers[k]->add(sum, up, sum, n); /* in place */
        for (int i = 0; i < n; i++)
            compare(tiers[k], i, sum[i], (double)(gate[i] + up[i] + up[i]), 0);
        guarded_free(tiers[k], y);
        guarded_free(tiers[k], sum);
    }
    guarded_free(tiers[0], gate);
    guarded_free(tiers[0], up);
}

static void check_rope(int n_heads, int head_dim, int rope_dim)
{
    begin_case("rope heads=%d head_dim=%d rope_dim=%d", n_heads, head_dim, rope_dim);
    int n = n_heads * head_dim, half = rope_dim / 2;
    float *x = random_row(n, 5), *table = random_row(rope_dim, 1);
    for (int i = 0; i < half; i++) {
        double angle = (double)random_float() * 3;
        table[i] = (float)cos(angle);
        table[half + i] = (float)sin(angle);
    }
    for (int k = 0; k < n_tiers; k++) {
        float *y = guarded(floats(n), odd());
        memcpy(y, x, floats(n));
        tiers[k]->rope(y, table, n_heads, head_dim, rope_dim);
        for (int h = 0; h < n_heads; h++)
            for (int i = 0; i < head_dim; i++) {
                int pair = i / 2, second = i % 2;
                const float *head = x + h * head_dim;
                double want = head[i], bound = 0;
                if (i < rope_dim) {
                    double a = head[2 * pair], b = head[2 * pair + 1];
                    double c = table[pair], s = table[half + pair];
                    want = second ? a * s + b * c : a * c - b * s;
                    bound = (fabs(a) + fabs(b)) * 0x1p-23;
                }
                compare(tiers[k], h * head_dim + i, y[h * head_dim + i], want, bound);
            }
        guarded_free(tiers[k], y);
    }
    guarded_free(tiers[0], x);
    guarded_free(tiers[0], table);
}

/* Hadamard's matrix of `run` rows times each part of x: sums and differences of halves, twice as long from round to round. */
static void check_rotate(int head_dim, int run)
{
    begin_case("rotate head_dim=%d run=%d", head_dim, run);
    float *x = random_row(head_dim, 5), *want = random_row(head_dim, 5);
    memcpy(want, x, floats(head_dim));
    for (int half = 1; half < run; half *= 2)
        for (int i = 0; i < head_dim; i++)
            if (!(i & half)) {
                const float low = want[i], high = want[i + half];
                want[i] = low + high;
                want[i + half] = low - high;
            }
    for (int i = 0; i < head_dim; i++)
        want[i] *= 1.0f / sqrtf((float)run);
    for (int k = 0; k < n_tiers; k++) {
        float *y = guarded(floats(head_dim), odd());
        memcpy(y, x, floats(head_dim));
        tiers[k]->rotate(y, head_dim, run);
        if (memcmp(y, want, floats(head_dim)) != 0)
            fail(tiers[k], "other bits");
        guarded_free(tiers[k], y);
    }
    guarded_free(tiers[0], want);
    guarded_free(tiers[0], x);
}

void check_elementwise(void)
{
    static const int sizes[] = {1, 8, 15, 16, 17, 48, 64, 100, 576, 1000, 4096};
    static const float scales[] = {1e-3f, 1.0f, 20.0f, 300.0f};
    static const int blocks[] = {1, 2, 3, 8, 13, 16, 18, 24, 37}; /* parts of chunks, whole ones, two at a time and what is left */
    for (int mode = 0; mode < Q_MODES; mode++)
        for (int k = 0; k < COUNT(blocks); k++)
            check_quantize(mode, blocks[k], random_below(4), random_below(4) ? PL_Q8_DOMINANT : 0.0f);
    for (int i = 0; i < 32; i++) {
        check_quantize_nan(i, NAN);
        check_quantize_nan(i, i % 2 ? INFINITY : -INFINITY);
    }
    for (int i = 0; i < COUNT(sizes); i++)
        for (int j = 0; j < COUNT(scales); j++) {
            check_rms_norm(sizes[i], scales[j]);
            check_layer_norm(sizes[i], scales[j]);
            check_gelu((sizes[i] + 15) / 16 * 16, scales[j]);
            check_silu_add((sizes[i] + 15) / 16 * 16, scales[j]);
        }
    static const int dims[] = {8, 24, 64, 80, 128};
    for (int i = 0; i < COUNT(dims); i++)
        for (int part = 1; part <= 2; part++)
            check_rope(1 + random_below(5), dims[i], dims[i] / part / 2 * 2);
    static const int heads[] = {4, 8, 12, 16, 20, 24, 32, 64, 80, 96, 128, 192, 256, 576};
    for (int i = 0; i < COUNT(heads); i++)
        check_rotate(heads[i], heads[i] & -heads[i]);
}
