/* row_top, row_exp_sum and row_divergence against double precision, on rows that end anywhere. */
#include "check.h"

static float *random_logits(int n, float spread)
{
    float *x = guarded(sizeof(float) * (size_t)n, 4 * (size_t)random_below(16));
    for (int i = 0; i < n; i++)
        x[i] = (random_float() + random_float() + random_float()) * spread + 3.0f;
    return x;
}

static double log_sum(const float *x, int n, double *top)
{
    double sum = 0;
    *top = x[0];
    for (int i = 1; i < n; i++)
        *top = fmax(*top, (double)x[i]);
    for (int i = 0; i < n; i++)
        sum += exp((double)x[i] - *top);
    return log(sum);
}

static void check_row(const float *x, int n)
{
    double top, want = log_sum(x, n, &top);
    int first = 0;
    while ((double)x[first] != top)
        first++;
    for (int k = 0; k < n_tiers; k++) {
        float got;
        int32_t at;
        if (tiers[k]->row_top(x, n, &got, &at) != 0 || (double)got != top || at != first)
            fail(tiers[k], "top %.9g at %d, not %.9g at %d", (double)got, at, top, first);
        double sum = log(tiers[k]->row_exp_sum(x, n, got));
        if (!(fabs(sum - want) <= 2e-6))
            fail(tiers[k], "log-sum %.12g, not %.12g", sum, want);
    }
}

/* A single NaN or infinity, anywhere. */
static void check_not_finite(float *x, int n)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    int at = random_below(n);
    float kept = x[at], top;
    int32_t where;
    x[at] = bad[random_below(COUNT(bad))];
    for (int k = 0; k < n_tiers; k++)
        if (tiers[k]->row_top(x, n, &top, &where) == 0)
            fail(tiers[k], "%g at %d of %d was taken", (double)x[at], at, n);
    x[at] = kept;
}

static void check_divergence(const float *a, const float *b, int n, double noise)
{
    double top_a, top_b, sum_a = log_sum(a, n, &top_a), sum_b = log_sum(b, n, &top_b), want = 0;
    sum_a += top_a;
    sum_b += top_b;
    for (int i = 0; i < n; i++) { /* p (d + e^-d - 1): the sum of p_b - p_a is 0 */
        double d = ((double)a[i] - sum_a) - ((double)b[i] - sum_b);
        want += exp((double)a[i] - sum_a) * (d + expm1(-d));
    }
    for (int k = 0; k < n_tiers; k++) {
        double got = tiers[k]->row_divergence(a, b, n, sum_a, sum_a - sum_b);
        if (!(fabs(got - want) <= fmax(want * (noise > 0.05 ? 2e-5 : 2e-3), 1e-12)) || got < 0)
            fail(tiers[k], "divergence %.9g, not %.9g", got, want);
    }
}

void check_distribution(void)
{
    static const int sizes[] = {1, 2, 7, 16, 31, 257, 4095, 4096, 4097, 8200, 32003};
    static const float spreads[] = {0.0f, 1.0f, 8.0f, 60.0f}, noises[] = {0.0f, 1e-3f, 0.1f, 5.0f};
    for (int i = 0; i < (quick ? COUNT(sizes) : 3 * COUNT(sizes)); i++) {
        int n = sizes[i % COUNT(sizes)];
        float spread = spreads[random_below(COUNT(spreads))], noise = noises[random_below(COUNT(noises))];
        begin_case("distribution n=%d spread=%g noise=%g", n, (double)spread, (double)noise);
        float *a = random_logits(n, spread), *b = random_logits(n, noise);
        for (int j = 0; j < n; j++)
            b[j] += a[j] - 3.0f;
        check_row(a, n);
        check_not_finite(a, n);
        check_divergence(a, b, n, (double)noise);
        guarded_free(tiers[0], a);
        guarded_free(tiers[0], b);
    }
}
