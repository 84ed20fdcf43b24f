/* The steps of the sampling chain, with the semantics of llama.cpp's samplers. Each keeps a part of the candidates or
 * changes their logits. Probabilities are a softmax over the candidates that are left. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sampling/sample.h"

enum {
    TOP_P_TRY = 256,    /* top-p looks at so many candidates first */
    TOP_P_NATS = 4,     /* then at those so far below the best, and so on */
    TOP_P_DEEPEST = 16, /* down to here; then at all */
    MIROSTAT_M = 100,
};

static const double LN2 = 0.69314718055994530942;
static const float COLDEST = 1e-20f;
static const float COLD = 1e-6f; /* from here down the quotients of large biases may be infinite */

static uint64_t rotl(uint64_t x, int k) { return (x << k) | (x >> (64 - k)); }

/* Uniform in [0, 1), 53 bits; the generator is xoshiro256++ (Blackman and Vigna, https://prng.di.unimi.it). */
double pl_random(pl_sampler *s)
{
    uint64_t *r = s->st.rng, out = rotl(r[0] + r[3], 23) + r[0], t = r[1] << 17;
    r[2] ^= r[0];
    r[3] ^= r[1];
    r[1] ^= r[2];
    r[0] ^= r[3];
    r[2] ^= t;
    r[3] = rotl(r[3], 45);
    return (double)(out >> 11) * 0x1p-53;
}

static int32_t at_most(int32_t a, int32_t b) { return a < b ? a : b; }

/* Cuts a sorted list where its probabilities reach `mass` (of `sum`), not before min_keep. False: they never do. */
static bool cut_at_mass(pl_list *l, double mass, int32_t min_keep)
{
    double run = 0;
    for (int32_t i = 0; i < l->n; i++) {
        run += (double)l->p[i];
        if (run >= mass && i + 1 >= min_keep) {
            l->n = i + 1;
            return true;
        }
    }
    return false;
}

/* Whether the candidates in the list, which are better than all others, hold `mass`: then they are cut there. */
static int try_cut(pl_candidates *c, double mass, int32_t min_keep, bool *done)
{
    int rc = pl_sort_list(c);
    if (!rc && c->list.n > 0) {
        pl_list_softmax(c); /* the row's maximum is the list's, so the scale is that of `mass` */
        *done = cut_at_mass(&c->list, mass, min_keep);
    }
    return rc;
}

static double min_p_threshold(const pl_sampler *s, float max) { return (double)max + log(s->o.min_p); }

/* Min-p is the next step: what it would drop need not be looked at. If its candidates do not reach the mass, top-p keeps
 * them all, and all that it keeps besides is dropped next. Many that do reach it are left to the search below. */
static int try_min_p(pl_sampler *s, double mass, bool *done)
{
    pl_candidates *c = &s->c;
    int rc = pl_keep_from(c, min_p_threshold(s, c->max));
    if (rc)
        return rc;
    if (c->list.n >= s->o.min_keep && (c->list.n <= TOP_P_TRY || pl_list_softmax(c) < mass)) {
        rc = try_cut(c, mass, s->o.min_keep, done);
        *done = true;
    } else {
        c->dense = true;
    }
    return rc;
}

/* The few best usually hold the mass; only when they do not are more of them sorted, and at last all. */
static int top_p_dense(pl_sampler *s, double mass)
{
    pl_candidates *c = &s->c;
    bool done = false;
    int rc = pl_keep_top(c, TOP_P_TRY);
    if (!rc)
        rc = try_cut(c, mass, s->o.min_keep, &done);
    for (int nats = TOP_P_NATS; !rc && !done && nats <= TOP_P_DEEPEST; nats += TOP_P_NATS) {
        c->dense = true;
        rc = pl_keep_from(c, (double)c->max - nats);
        if (!rc && pl_list_softmax(c) >= mass)
            rc = try_cut(c, mass, s->o.min_keep, &done);
    }
    if (rc || done)
        return rc;
    c->dense = true;
    rc = pl_keep_all(c);
    return rc ? rc : try_cut(c, mass, s->o.min_keep, &done);
}

/* Top-p (nucleus) sampling, https://arxiv.org/abs/1904.09751. On a whole vocabulary, the mass is a part of the sum in the
 * order of the row, however many candidates are sorted. */
static int step_top_p(pl_sampler *s, bool min_p_follows)
{
    pl_candidates *c = &s->c;
    bool done = false;
    if (s->o.top_p >= 1.0)
        return PL_OK;
    if (c->dense) {
        int rc = pl_scan(c);
        if (rc)
            return rc;
        double mass = s->o.top_p * pl_row_softmax_sum(c);
        if (min_p_follows && s->o.min_p > 0.0)
            rc = try_min_p(s, mass, &done);
        return rc || done ? rc : top_p_dense(s, mass);
    }
    int rc = pl_sort_list(c);
    if (rc || c->list.n == 0)
        return rc;
    double sum = pl_list_softmax(c);
    cut_at_mass(&c->list, s->o.top_p * sum, s->o.min_keep);
    return PL_OK;
}

static int32_t count_from(const pl_list *l, double threshold)
{
    int32_t n = 0;
    for (int32_t i = 0; i < l->n; i++)
        n += (double)l->logit[i] >= threshold;
    return n;
}

/* p >= min_p * the largest p, https://github.com/ggml-org/llama.cpp/pull/3841. */
static int step_min_p(pl_sampler *s)
{
    pl_candidates *c = &s->c;
    if (s->o.min_p <= 0.0)
        return PL_OK;
    if (c->dense) {
        int rc = pl_scan(c);
        if (!rc)
            rc = pl_keep_from(c, min_p_threshold(s, c->max));
        if (rc || c->list.n >= s->o.min_keep)
            return rc;
        c->dense = true;
        return pl_keep_top(c, s->o.min_keep);
    }
    pl_list *l = &c->list;
    double threshold = min_p_threshold(s, pl_list_max(c));
    if (count_from(l, threshold) >= s->o.min_keep)
        return pl_keep_from(c, threshold);
    return pl_keep_top(c, s->o.min_keep);
}

static int step_top_n_sigma(pl_sampler *s)
{
    pl_candidates *c = &s->c;
    if (s->o.top_n_sigma <= 0.0)
        return PL_OK;
    int rc = c->dense ? pl_scan(c) : PL_OK;
    if (rc)
        return rc;
    const float *x = c->dense ? c->row : c->list.logit;
    int32_t n = c->dense ? c->n : c->list.n, finite = 0;
    double sum = 0, squares = 0;
    float max = -INFINITY;
    for (int32_t i = 0; i < n; i++) {
        bool ok = x[i] > -INFINITY;
        finite += ok;
        sum += ok ? (double)x[i] : 0.0;
        max = x[i] > max ? x[i] : max;
    }
    if (finite <= 1)
        return PL_OK;
    double mean = sum / finite;
    for (int32_t i = 0; i < n; i++) {
        double d = (double)x[i] - mean;
        squares += x[i] > -INFINITY ? d * d : 0.0;
    }
    return pl_keep_from(c, (double)max - s->o.top_n_sigma * sqrt(squares / finite));
}

/* -sum p ln p over the list, whose p must be fresh from pl_list_softmax with the given sum; as ln p = logit - max -
 * ln sum, no logarithm per token is needed. */
static double entropy(pl_candidates *c, double sum)
{
    const pl_list *l = &c->list;
    double weighted = 0, max = (double)pl_list_max(c);
    for (int32_t i = 0; i < l->n; i++)
        weighted += l->p[i] > 0.0f ? (double)l->p[i] * ((double)l->logit[i] - max) : 0.0;
    return log(sum) - weighted / sum;
}

/* How many of the tokens in `order` (their list positions in the low 32 bits) it takes to exceed `mass`. */
static int32_t count_to_mass(const pl_list *l, const uint64_t *order, double mass, int32_t min_keep)
{
    double run = 0;
    for (int32_t i = 0; i < l->n; i++) {
        run += (double)l->p[(uint32_t)order[i]];
        if (run > mass && i + 1 >= min_keep)
            return i + 1;
    }
    return l->n;
}

/* Locally typical sampling, https://arxiv.org/abs/2202.00666: the tokens whose surprise is nearest to the entropy,
 * until they hold the mass; equally near ones in list order, which stays as it was. */
static int step_typical(pl_sampler *s)
{
    pl_candidates *c = &s->c;
    pl_list *l = &c->list;
    if (s->o.typical_p >= 1.0)
        return PL_OK;
    int rc = pl_keep_all(c);
    if (!rc)
        rc = pl_sort_reserve(&c->sort, (size_t)l->n);
    if (rc || l->n == 0)
        return rc;
    double sum = pl_list_softmax(c), log_sum = log(sum), h = entropy(c, sum), max = (double)pl_list_max(c);
    for (int32_t i = 0; i < l->n; i++) {
        double surprise = log_sum + max - (double)l->logit[i];
        c->sort.keys[i] = (uint64_t)pl_order_key((float)fabs(surprise - h)) << 32 | (uint32_t)i;
    }
    pl_sort_keys(&c->sort, (size_t)l->n, true);
    int32_t keep = count_to_mass(l, c->sort.keys, s->o.typical_p * sum, s->o.min_keep);
    for (int32_t i = 0; i < l->n; i++)
        l->p[i] = 0;
    for (int32_t i = 0; i < keep; i++)
        l->p[(uint32_t)c->sort.keys[i]] = 1;
    int32_t n = 0;
    for (int32_t i = 0; i < l->n; i++) {
        if (l->p[i] == 0)
            continue;
        l->id[n] = l->id[i];
        l->logit[n++] = l->logit[i];
    }
    l->n = n;
    return PL_OK;
}

/* Exclude top choices, https://github.com/oobabooga/text-generation-webui/pull/6335: of the tokens that reach the
 * threshold only the least likely stays. */
static int step_xtc(pl_sampler *s)
{
    pl_candidates *c = &s->c;
    pl_list *l = &c->list;
    if (s->o.xtc_probability <= 0.0 || s->o.xtc_threshold > 0.5)
        return PL_OK;
    int rc = pl_keep_all(c);
    if (rc || l->n < 2)
        return rc;
    if (pl_random(s) > s->o.xtc_probability)
        return PL_OK;
    rc = pl_sort_list(c);
    if (rc)
        return rc;
    double least = s->o.xtc_threshold * pl_list_softmax(c);
    int32_t above = 0;
    while (above < l->n && (double)l->p[above] >= least)
        above++;
    int32_t drop = above - 1;
    if (drop <= 0 || l->n - drop < s->o.min_keep)
        return PL_OK;
    l->n -= drop;
    c->n_counted -= drop;
    memmove(l->id, l->id + drop, (size_t)l->n * sizeof *l->id);
    memmove(l->logit, l->logit + drop, (size_t)l->n * sizeof *l->logit);
    return PL_OK;
}

/* Whether the quotient of the best candidate is infinite: no other is near enough to it to count. */
static int overflows(pl_candidates *c, float t, bool *yes)
{
    *yes = false;
    if (t >= COLD)
        return PL_OK;
    float best = -INFINITY;
    if (c->dense) {
        int rc = pl_scan(c);
        if (rc)
            return rc;
        best = c->max;
    }
    for (int32_t i = 0; !c->dense && i < c->list.n; i++)
        best = c->list.logit[i] > best ? c->list.logit[i] : best;
    *yes = isfinite(best) && !isfinite(best / t);
    return PL_OK;
}

/* Divides the logits; at 0, or so near to it that the quotients are not numbers, only the best token stays. */
int pl_step_temperature(pl_sampler *s, double temperature)
{
    pl_candidates *c = &s->c;
    float t = (float)temperature;
    bool too_cold = t < COLDEST;
    int rc = too_cold ? PL_OK : overflows(c, t, &too_cold);
    if (rc)
        return rc;
    if (too_cold)
        return pl_keep_top(c, 1);
    if (t == 1.0f)
        return PL_OK;
    if (c->dense) {
        bool scanned = c->scanned;
        rc = pl_make_writable(c);
        if (rc)
            return rc;
        for (int32_t i = 0; i < c->n; i++)
            c->work[i] /= t;
        /* Rounded division keeps the order, so the maxima of the quotients are the quotients of the maxima. */
        for (int32_t b = 0; scanned && b < c->n_blocks; b++)
            c->block_max[b] /= t;
        c->max /= t;
        c->scanned = scanned && c->max < INFINITY;
        return PL_OK;
    }
    bool finite = true;
    for (int32_t i = 0; i < c->list.n; i++) {
        c->list.logit[i] /= t;
        finite &= c->list.logit[i] < INFINITY;
    }
    return finite ? PL_OK : PL_SAMPLE_ENAN;
}

/* Dynamic temperature: between temperature -/+ range, by how near the entropy is to its maximum, which is that of all
 * candidates that llama.cpp counts. */
static int step_temperature(pl_sampler *s)
{
    pl_candidates *c = &s->c;
    double range = s->o.dynatemp_range;
    if (range <= 0.0)
        return pl_step_temperature(s, s->o.temperature);
    int rc = pl_keep_all(c);
    if (rc || c->list.n <= 1)
        return rc;
    double low = fmax(0.0, s->o.temperature - range), high = s->o.temperature + range;
    double h = entropy(c, pl_list_softmax(c)) / log((double)c->n_counted);
    return pl_step_temperature(s, low + (high - low) * pow(fmin(h, 1.0), s->o.dynatemp_exponent));
}

/* Candidates that llama.cpp counts after a step: those at -inf stay in its list until a step cuts the list at a length
 * or a probability. */
static int32_t still_counted(const pl_sampler *s, int32_t step)
{
    const int32_t n = s->c.n_counted, left = s->c.list.n, least = at_most(s->o.min_keep, n);
    const int32_t cut = left > least ? left : least;
    switch (step) {
    case PL_STEP_TOP_K: return s->o.top_k > 0 ? at_most(s->o.top_k, n) : n;
    case PL_STEP_TYPICAL_P: return s->o.typical_p < 1.0 ? cut : n;
    case PL_STEP_TOP_P: return s->o.top_p < 1.0 ? cut : n;
    case PL_STEP_MIN_P: return s->o.min_p > 0.0 ? cut : n;
    default: return n;
    }
}

static int run_step(pl_sampler *s, int32_t at)
{
    const bool min_p_follows = at + 1 < s->o.n_steps && s->o.steps[at + 1] == PL_STEP_MIN_P;
    switch (s->o.steps[at]) {
    case PL_STEP_PENALTIES: return pl_apply_penalties(s);
    case PL_STEP_DRY: return pl_apply_dry(s);
    case PL_STEP_TOP_N_SIGMA: return step_top_n_sigma(s);
    case PL_STEP_TOP_K: return s->o.top_k > 0 ? pl_keep_top(&s->c, s->o.top_k) : PL_OK;
    case PL_STEP_TYPICAL_P: return step_typical(s);
    case PL_STEP_TOP_P: return step_top_p(s, min_p_follows);
    case PL_STEP_MIN_P: return step_min_p(s);
    case PL_STEP_XTC: return step_xtc(s);
    case PL_STEP_TEMPERATURE: return step_temperature(s);
    case PL_STEP_ADAPTIVE_P: return PL_OK; /* it selects: pl_step_adaptive, after the chain */
    default: return PL_EINVAL;
    }
}

/* The step at place `at` of the chain. */
int pl_step_run(pl_sampler *s, int32_t at)
{
    int rc = run_step(s, at);
    if (!rc && !s->c.dense)
        s->c.n_counted = still_counted(s, s->o.steps[at]);
    return rc;
}

/* The k that Mirostat 1 derives from the Zipf exponent s of the m best candidates (n of them, sorted). */
static int32_t mirostat_k(const pl_sampler *s, const pl_list *l)
{
    double numerator = 0, denominator = 0;
    int32_t m = at_most(MIROSTAT_M, l->n);
    for (int32_t i = 0; i + 1 < m; i++) {
        double t = log((i + 2.0) / (i + 1.0));
        numerator += t * ((double)l->logit[i] - (double)l->logit[i + 1]);
        denominator += t * t;
    }
    double zipf = numerator / denominator, eps = zipf - 1.0;
    double k = pow(eps * exp2(s->st.mu) / (1.0 - pow((double)s->o.n_tokens, -eps)), 1.0 / zipf);
    if (k != k || k >= (double)s->o.n_tokens)
        return s->o.n_tokens; /* a flat row: no exponent, no cut */
    return k < 1.0 ? 1 : (int32_t)k;
}

/* Mirostat 1, https://arxiv.org/abs/2007.14966. */
int pl_step_mirostat1(pl_sampler *s)
{
    pl_candidates *c = &s->c;
    if (!c->dense)
        return PL_OK; /* temperature 0 left one token */
    int rc = pl_keep_top(c, MIROSTAT_M);
    if (rc || c->list.n <= 1)
        return rc;
    int32_t k = mirostat_k(s, &c->list);
    if (k > c->list.n && c->list.n == MIROSTAT_M) {
        c->dense = true;
        return pl_keep_top(c, k);
    }
    c->list.n = at_most(k, c->list.n);
    return PL_OK;
}

/* Mirostat 2: tokens whose surprise is at most mu bits. */
int pl_step_mirostat2(pl_sampler *s)
{
    pl_candidates *c = &s->c;
    if (!c->dense)
        return PL_OK;
    int rc = pl_scan(c);
    if (rc)
        return rc;
    double log_sum = (double)c->max + log(pl_row_softmax_sum(c));
    rc = pl_keep_from(c, log_sum - s->st.mu * LN2);
    if (rc || c->list.n > 0)
        return rc;
    c->dense = true;
    return pl_keep_top(c, 1);
}

/* Adaptive-p, https://github.com/ggml-org/llama.cpp/pull/17927: prefers tokens whose probability is near a target
 * that makes up for the average of those chosen so far. The probabilities before the transform stay in sort.keys, as
 * the bits of doubles, for the average's next update. */
int pl_step_adaptive(pl_sampler *s)
{
    pl_list *l = &s->c.list;
    if (s->o.adaptive_target < 0.0)
        return PL_OK;
    int rc = pl_sort_reserve(&s->c.sort, (size_t)l->n);
    if (rc)
        return rc;
    double target = fmin(s->o.adaptive_target, 1.0), sum = pl_list_softmax(&s->c);
    if (s->st.ema_weight > 0.0)
        target = 2.0 * target - s->st.ema_sum / s->st.ema_weight;
    target = fmax(0.0, fmin(1.0, target));
    for (int32_t i = 0; i < l->n; i++) {
        double p = (double)l->p[i] / sum, distance = fabs(p - target) / 0.3;
        memcpy(&s->c.sort.keys[i], &p, sizeof p);
        l->logit[i] = (float)(5.0 - 10.0 * distance * distance / (1.0 + distance));
    }
    l->sorted = false;
    return PL_OK;
}
