/* quantize (bit for bit), rms_norm, silu_mul, add and rope against double precision. */
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
    case Q_NEAR_SPIKE: return i == 17 ? 8.0f + random_float() : random_float(); /* on both sides of the threshold */
    case Q_TIES: return i == 5 ? 127.0f : (float)(random_below(253) - 126) + 0.5f; /* d = 1: halves go to even */
    case Q_ONE: return i == 31 ? -3.25f : 0.0f;
    case Q_TINY: return random_float() * 0x1p-115f;
    case Q_DENORMAL: return random_float() * 0x1p-126f;
    case Q_HUGE: return random_float() * 3e38f;
    default: return random_float() * 10;
    }
}

/* The second block must take up what the first rounded away, to half a step of its own scale. */
static void check_second_block(const pl_kernels *tier, const float *x, const pl_q8 *first, const pl_q8 *second)
{
    double most = 0;
    int32_t sums[2] = {0, 0};
    for (int i = 0; i < 32; i++) {
        double rest = x[i] - (double)first->q[i] * (double)first->d, slack = fabs(rest) * 0x1p-20 + fabs((double)x[i]) * 0x1p-23;
        most = fmax(most, fabs(rest) - slack);
        sums[i / 16] += second->q[i];
        if (!(fabs(rest - (double)second->q[i] * (double)second->d) <= 0.5 * (double)second->d + slack))
            fail(tier, "second block, element %d: %.9g of %.9g is left", i, rest, (double)x[i]);
    }
    if (!((double)second->d * 127.0001 >= most) || second->rest != 0)
        fail(tier, "second block: d %.9g for at most %.9g, rest %d", (double)second->d, most, second->rest);
    if (second->sum[0] != sums[0] || second->sum[1] != sums[1] || second->s != second->d * (float)(sums[0] + sums[1]))
        fail(tier, "second block: sums %d %d, s %.9g", second->sum[0], second->sum[1], (double)second->s);
}

static void check_block(const pl_kernels *tier, const float *x, const pl_q8 *got, int rest)
{
    pl_q8 want;
    double most = 0, energy = 0;
    reference_q8(x, &want);
    for (int i = 0; i < 32; i++) {
        most = fmax(most, fabs((double)x[i]));
        energy += (double)x[i] * (double)x[i];
    }
    if (memcmp(got->q, want.q, 32) != 0 || got->d != want.d || got->s != want.s || got->sum[0] != want.sum[0] || got->sum[1] != want.sum[1])
        fail(tier, "d %.9g sum %d %d s %.9g, expected %.9g %d %d %.9g", (double)got->d, got->sum[0], got->sum[1], (double)got->s,
             (double)want.d, want.sum[0], want.sum[1], (double)want.s);
    double share = most * most / energy; /* squares of floats this large or small are no floats */
    int clear = most < 1e17 && most > 1e-16 && fabs(share - (double)PL_Q8_DOMINANT) > 1e-5;
    if (clear && (got->rest != 0) != (share > (double)PL_Q8_DOMINANT))
        fail(tier, "rest %d with %.6g of the energy in one value", got->rest, share);
    if (got->rest != 0 && got->rest != rest)
        fail(tier, "rest %d, the second blocks are %d further on", got->rest, rest);
    else if (got->rest)
        check_second_block(tier, x, got, got + got->rest);
    else if (!is_poison(got + rest, sizeof *got))
        fail(tier, "wrote a second block that it does not name");
}

static void check_quantize(int mode, int n_blocks, int gap)
{
    begin_case("quantize blocks=%d gap=%d values=%d", n_blocks, gap, mode);
    float *x = guarded(floats(32 * n_blocks), odd());
    for (int i = 0; i < 32 * n_blocks; i++)
        x[i] = quantize_input(mode, i % 32);
    for (int k = 0; k < n_tiers; k++) {
        int rest = n_blocks + gap;
        pl_q8 *out = guarded(sizeof(pl_q8) * (size_t)(n_blocks + rest), 4 * (size_t)random_below(4));
        tiers[k]->quantize(x, n_blocks, rest, out);
        for (int b = 0; b < n_blocks; b++)
            check_block(tiers[k], x + 32 * b, out + b, rest);
        if (!is_poison(out + n_blocks, sizeof(pl_q8) * (size_t)gap))
            fail(tiers[k], "wrote between the blocks");
        guarded_free(tiers[k], out);
    }
    guarded_free(tiers[0], x);
}

/* An inf or a NaN anywhere in a block must show in its scale, and so in every product. */
static void check_quantize_nan(int at, float value)
{
    begin_case("quantize with %g at %d", (double)value, at);
    float *x = random_row(32, 3);
    x[at] = value;
    for (int k = 0; k < n_tiers; k++) {
        pl_q8 *out = guarded(2 * sizeof(pl_q8), 0);
        tiers[k]->quantize(x, 1, 1, out);
        if (!isnan(out->d) || !isnan(out->s))
            fail(tiers[k], "d is %g, s is %g", (double)out->d, (double)out->s);
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

static void check_rope(int n_heads, int head_dim, int rope_dim, int neox)
{
    begin_case("rope heads=%d head_dim=%d rope_dim=%d neox=%d", n_heads, head_dim, rope_dim, neox);
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
        tiers[k]->rope(y, table, n_heads, head_dim, rope_dim, neox);
        for (int h = 0; h < n_heads; h++)
            for (int i = 0; i < head_dim; i++) {
                int pair = neox ? i % (half ? half : 1) : i / 2, second = neox ? i >= half : i % 2;
                const float *head = x + h * head_dim;
                double want = head[i], bound = 0;
                if (i < rope_dim) {
                    double a = head[neox ? pair : 2 * pair], b = head[neox ? pair + half : 2 * pair + 1];
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

void check_elementwise(void)
{
    static const int sizes[] = {1, 8, 15, 16, 17, 48, 64, 100, 576, 1000, 4096};
    static const float scales[] = {1e-3f, 1.0f, 20.0f, 300.0f};
    for (int mode = 0; mode < Q_MODES; mode++)
        for (int n = 1; n < (quick ? 3 : 9); n++)
            check_quantize(mode, n, random_below(4));
    for (int i = 0; i < 32; i++) {
        check_quantize_nan(i, NAN);
        check_quantize_nan(i, i % 2 ? INFINITY : -INFINITY);
    }
    for (int i = 0; i < COUNT(sizes); i++)
        for (int j = 0; j < COUNT(scales); j++) {
            check_rms_norm(sizes[i], scales[j]);
            check_silu_add((sizes[i] + 15) / 16 * 16, scales[j]);
        }
    static const int dims[] = {8, 24, 64, 80, 128};
    for (int i = 0; i < COUNT(dims); i++)
        for (int neox = 0; neox < 2; neox++)
            for (int part = 1; part <= 2; part++)
                check_rope(1 + random_below(5), dims[i], dims[i] / part / 2 * 2, neox);
}
