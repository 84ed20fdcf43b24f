/* The sampler on hostile rows: its kernels bit for bit the same on every tier, its selections against a plain sort, masks
 * against logits of -inf. */
#include "check.h"
#include "sampling/sample.h"

enum { N_KINDS = 8 };

/* Rows as no model should make them, but may. */
static float hostile(int kind, int i)
{
    switch (kind) {
    case 0: return 1.5f;                                          /* all equal */
    case 1: return random_float() * 4.0f + random_float() * 4.0f; /* as models make them */
    case 2: return (float)random_below(5) - 2.0f;                 /* many equal */
    case 3: return random_float() * 1e-40f;                       /* denormals, both signs */
    case 4: return i % 3 ? -INFINITY : random_float();            /* many excluded */
    case 5: return random_float() * 2e38f;                        /* the largest */
    case 6: return random_below(2) ? 0.0f : -0.0f;
    default: return random_below(40) ? -90.0f + random_float() * 4.0f : 0.0f; /* about where e^x becomes 0 */
    }
}

static float *hostile_row(int kind, int n)
{
    float *x = guarded(sizeof(float) * (size_t)n, 4 * (size_t)random_below(16));
    for (int i = 0; i < n; i++)
        x[i] = hostile(kind, i);
    if (kind == 4)
        x[random_below(n)] = 0.5f; /* not all */
    return x;
}

static float largest(const float *x, int n)
{
    float max = x[0];
    for (int i = 1; i < n; i++)
        max = fmaxf(max, x[i]);
    return max;
}

static void check_maxima(float *x, int n)
{
    int blocks = (n + PL_SAMPLE_BLOCK - 1) / PL_SAMPLE_BLOCK, at = random_below(n);
    const float kept = x[at], bad[] = {NAN, -NAN, INFINITY};
    for (int k = 0; k < n_tiers; k++) {
        float *maxima = guarded(sizeof(float) * (size_t)blocks, 4);
        if (tiers[k]->block_maxima(x, n, maxima) != 0)
            fail(tiers[k], "maxima: refused");
        for (int b = 0; b < blocks; b++) {
            int from = b * PL_SAMPLE_BLOCK, size = n - from < PL_SAMPLE_BLOCK ? n - from : PL_SAMPLE_BLOCK;
            if (maxima[b] != largest(x + from, size) || (maxima[b] == 0.0f && signbit(maxima[b])))
                fail(tiers[k], "maximum of block %d: %.9g", b, (double)maxima[b]);
        }
        for (int i = 0; i < COUNT(bad); i++) {
            x[at] = bad[i];
            if (tiers[k]->block_maxima(x, n, maxima) == 0)
                fail(tiers[k], "%g at %d was taken", (double)bad[i], at);
        }
        x[at] = kept;
        guarded_free(tiers[k], maxima);
    }
}

static void check_softmax(const float *x, int n)
{
    float max = largest(x, n), *first = guarded(sizeof(float) * (size_t)n, 4);
    double sum = tiers[0]->softmax_terms(x, n, max, first), whole = tiers[0]->softmax_sum(x, n, max), want = 0;
    for (int i = 0; i < n; i++) {
        double d = (double)(x[i] - max), e = d >= -87.0 ? exp(d) : 0.0;
        want += e;
        if (!(fabs((double)first[i] - e) <= 2.5e-7 * e))
            fail(tiers[0], "e^%.9g: %.9g", d, (double)first[i]);
    }
    if (!(fabs(sum - want) <= 3e-7 * want && fabs(whole - want) <= 3e-7 * want))
        fail(tiers[0], "sums %.15g and %.15g, not %.15g", sum, whole, want);
    for (int k = 1; k < n_tiers; k++) {
        float *terms = guarded(sizeof(float) * (size_t)n, 4 * (size_t)random_below(16));
        if (tiers[k]->softmax_terms(x, n, max, terms) != sum || tiers[k]->softmax_sum(x, n, max) != whole)
            fail(tiers[k], "another sum than on %s", tiers[0]->name);
        if (memcmp(terms, first, sizeof(float) * (size_t)n) != 0)
            fail(tiers[k], "other terms than on %s", tiers[0]->name);
        guarded_free(tiers[k], terms);
    }
    guarded_free(tiers[0], first);
}

static const float *sorted_row; /* that `best_first` compares ids of */

static int best_first(const void *a, const void *b)
{
    int32_t i = *(const int32_t *)a, j = *(const int32_t *)b;
    if (sorted_row[i] != sorted_row[j])
        return sorted_row[i] > sorted_row[j] ? -1 : 1;
    return i < j ? -1 : 1;
}

/* The ids of the logits above -inf, best first -> how many. */
static int sort_ids(const float *x, int n, int32_t *ids)
{
    int m = 0;
    for (int i = 0; i < n; i++)
        if (x[i] > -INFINITY)
            ids[m++] = i;
    sorted_row = x;
    qsort(ids, (size_t)m, sizeof *ids, best_first);
    return m;
}

static void expect(const pl_kernels *tier, const char *what, pl_candidates *c, int rc, const float *x, const int32_t *ids, int n)
{
    if (!rc)
        rc = pl_sort_list(c);
    if (rc != 0 || c->list.n != n) {
        fail(tier, "%s: code %d, %d candidates, not %d", what, rc, c->list.n, n);
        return;
    }
    for (int i = 0; i < n; i++)
        if (c->list.id[i] != ids[i] || c->list.logit[i] != x[ids[i]]) {
            fail(tier, "%s: place %d has token %d, not %d", what, i, c->list.id[i], ids[i]);
            return;
        }
}

static void check_selections(const pl_kernels *tier, const float *x, int n)
{
    int32_t *ids = malloc(sizeof *ids * (size_t)n);
    int m = sort_ids(x, n, ids);
    const int counts[] = {1, 2, 40, n / 64 + 1, n, 2000000000};
    pl_candidates c;
    if (pl_candidates_init(&c, n) != 0)
        abort();
    for (int i = 0; i < COUNT(counts); i++) {
        pl_candidates_set(&c, x);
        expect(tier, "top", &c, pl_keep_top(&c, counts[i]), x, ids, counts[i] < m ? counts[i] : m);
    }
    pl_candidates_set(&c, x);
    expect(tier, "all", &c, pl_keep_all(&c), x, ids, m);
    double threshold = (double)x[ids[random_below(m)]];
    int above = 0;
    while (above < m && (double)x[ids[above]] >= threshold)
        above++;
    pl_candidates_set(&c, x);
    expect(tier, "from", &c, pl_keep_from(&c, threshold), x, ids, above);
    pl_candidates_free(&c);
    free(ids);
}

static pl_sampler *sampler(int n, int n_tokens, int chain)
{
    static const int32_t chains[][4] = {{PL_STEP_TOP_K, PL_STEP_TOP_P, PL_STEP_MIN_P, PL_STEP_TEMPERATURE},
                                        {PL_STEP_TOP_P, PL_STEP_MIN_P, PL_STEP_TEMPERATURE, PL_STEP_XTC},
                                        {PL_STEP_TEMPERATURE, PL_STEP_TOP_P, PL_STEP_TOP_P, PL_STEP_TOP_P},
                                        {PL_STEP_TYPICAL_P, PL_STEP_TOP_N_SIGMA, PL_STEP_XTC, PL_STEP_TEMPERATURE}};
    pl_sampler_params o = {.n_vocab = n,
                           .n_tokens = n_tokens,
                           .n_steps = 4,
                           .top_k = 40,
                           .top_p = 0.95,
                           .min_p = 0.05,
                           .typical_p = 0.9,
                           .top_n_sigma = 2.0,
                           .xtc_probability = 0.5,
                           .xtc_threshold = 0.1,
                           .temperature = 0.8,
                           .repeat_penalty = 1.0};
    memcpy(o.steps, chains[chain], sizeof chains[chain]);
    pl_sampler *s = pl_sampler_new(&o, 42);
    if (!s)
        abort();
    return s;
}

/* Draws with a mask, from a row with poison where it masks and behind the tokens, and from one with -inf there. */
static void check_mask(const pl_kernels *tier, const float *x, int n, int chain, int kept, int32_t *drawn)
{
    int padded = n + random_below(70), words = (n + 31) / 32;
    uint32_t *mask = guarded(sizeof(uint32_t) * (size_t)words, 4);
    float *poisoned = guarded(sizeof(float) * (size_t)padded, 4), *cut = guarded(sizeof(float) * (size_t)n, 4);
    memset(mask, 0, sizeof(uint32_t) * (size_t)words); /* of `poisoned` every logit is a NaN so far */
    for (int i = 0; i < n; i++)
        cut[i] = -INFINITY;
    for (int i = 0; i < n; i++)
        if (kept == 2 ? random_below(2) : kept && i == n - 1) {
            mask[i / 32] |= (uint32_t)1 << i % 32;
            poisoned[i] = cut[i] = x[i];
        }
    pl_sampler *a = sampler(padded, n, chain), *b = sampler(n, n, chain);
    for (int i = 0; i < 4; i++) {
        drawn[i] = pl_sample_masked(a, poisoned, mask);
        int alone = pl_sample(b, cut, n);
        if (drawn[i] != alone || (drawn[i] < 0 && drawn[i] != PL_SAMPLE_EEMPTY))
            fail(tier, "chain %d: with a mask %d, with -inf %d", chain, drawn[i], alone);
        if (kept == 0 && alone != PL_SAMPLE_EEMPTY)
            fail(tier, "chain %d: %d of no tokens", chain, alone);
    }
    pl_sampler_free(a);
    pl_sampler_free(b);
    guarded_free(tier, mask);
    guarded_free(tier, poisoned);
    guarded_free(tier, cut);
}

/* Everything that has a tier's kernels inside, on each of them with the same random numbers. */
static void check_row_on_tiers(const float *x, int n)
{
    int32_t drawn[MAX_TIERS][12][4];
    const uint64_t seed = (uint64_t)random_bits() << 32 | random_bits();
    for (int k = 0; k < n_tiers; k++) {
        pl_isa_select(tiers[k]->name);
        set_seed(seed);
        check_selections(tiers[k], x, n);
        for (int i = 0; i < 12; i++)
            check_mask(tiers[k], x, n, i % 4, i / 4, drawn[k][i]);
        if (memcmp(drawn[k], drawn[0], sizeof drawn[0]) != 0)
            fail(tiers[k], "draws other tokens than %s", tiers[0]->name);
    }
}

void check_sampling(void)
{
    static const int sizes[] = {1, 2, 7, 31, 63, 64, 65, 256, 257, 1000, 4097, 20011};
    for (int i = 0; i < (quick ? N_KINDS * 4 : N_KINDS * 16); i++) {
        int n = sizes[random_below(COUNT(sizes))], kind = i % N_KINDS;
        begin_case("sampling n=%d kind=%d", n, kind);
        float *x = hostile_row(kind, n);
        check_maxima(x, n);
        check_softmax(x, n);
        check_row_on_tiers(x, n);
        guarded_free(tiers[0], x);
    }
}
