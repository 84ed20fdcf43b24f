/* The sampler: runs its chain over a row of logits, draws a token, and keeps the state of one sequence. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sampling/sample.h"

static const double LN2 = 0.69314718055994530942;

/* splitmix64 (https://prng.di.unimi.it) turns a seed into the generator's state, which must not be all zero. */
static void seed_random(pl_sampler_state *st, uint64_t seed)
{
    for (int i = 0; i < 4; i++) {
        uint64_t z = (seed += 0x9e3779b97f4a7c15u);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        st->rng[i] = z ^ (z >> 31);
    }
}

void pl_sampler_reset(pl_sampler *s, uint64_t seed)
{
    seed_random(&s->st, seed);
    s->st.mu = 2.0 * s->o.mirostat_tau;
    s->st.ema_weight = 1.0 / (1.0 - s->o.adaptive_decay);
    s->st.ema_sum = s->o.adaptive_target * s->st.ema_weight;
    s->st.pending_token = -1;
    s->st.pending_p = 0;
    pl_history_clear(&s->history);
}

static bool params_ok(const pl_sampler_params *o)
{
    if (o->n_tokens < 1 || o->n_tokens > o->n_vocab || o->n_steps < 0 || o->n_steps > PL_MAX_STEPS)
        return false;
    if (o->n_bias < 0 || o->n_breakers < 0 || o->penalty_last_n < 0 || o->dry_last_n < 0 || o->min_keep < 0)
        return false;
    for (int32_t i = 0; i < o->n_bias; i++)
        if (o->bias_ids[i] < 0 || o->bias_ids[i] >= o->n_tokens)
            return false;
    return o->mirostat >= 0 && o->mirostat <= 2 && o->adaptive_decay >= 0.0 && o->adaptive_decay < 1.0 && o->repeat_penalty > 0.0;
}

static int copy_bias(pl_sampler *s)
{
    size_t n = (size_t)s->o.n_bias;
    if (n == 0)
        return PL_OK;
    s->bias_ids = malloc(n * sizeof *s->bias_ids);
    s->bias = malloc(n * sizeof *s->bias);
    if (!s->bias_ids || !s->bias)
        return PL_ENOMEM;
    memcpy(s->bias_ids, s->o.bias_ids, n * sizeof *s->bias_ids);
    memcpy(s->bias, s->o.bias, n * sizeof *s->bias);
    return PL_OK;
}

pl_sampler *pl_sampler_new(const pl_sampler_params *params, uint64_t seed)
{
    if (!params_ok(params))
        return NULL;
    pl_sampler *s = calloc(1, sizeof *s);
    if (!s)
        return NULL;
    s->o = *params;
    if (pl_candidates_init(&s->c, params->n_tokens) || copy_bias(s) || pl_history_init(s)) {
        pl_sampler_free(s);
        return NULL;
    }
    s->o.bias_ids = s->o.breaker_lens = s->o.breaker_tokens = NULL; /* the caller's, copied */
    s->o.bias = NULL;
    pl_sampler_reset(s, seed);
    return s;
}

void pl_sampler_free(pl_sampler *s)
{
    if (!s)
        return;
    pl_candidates_free(&s->c);
    pl_history_free(s);
    free(s->bias_ids);
    free(s->bias);
    free(s);
}

static bool has_step(const pl_sampler *s, int32_t step)
{
    for (int32_t i = 0; i < s->o.n_steps; i++)
        if (s->o.steps[i] == step)
            return true;
    return false;
}

static bool adaptive(const pl_sampler *s)
{
    return s->o.mirostat == 0 && s->o.adaptive_target >= 0.0 && has_step(s, PL_STEP_ADAPTIVE_P);
}

static int apply_bias(pl_sampler *s)
{
    if (s->o.n_bias == 0)
        return PL_OK;
    int rc = pl_make_writable(&s->c);
    if (rc)
        return rc;
    for (int32_t i = 0; i < s->o.n_bias; i++)
        s->c.work[s->bias_ids[i]] += s->bias[i];
    return PL_OK;
}

/* Mirostat's cuts look at the whole row after bias and temperature; the other steps do not run. */
static int run_mirostat(pl_sampler *s)
{
    int rc = pl_step_temperature(s, s->o.temperature);
    if (rc)
        return rc;
    return s->o.mirostat == 1 ? pl_step_mirostat1(s) : pl_step_mirostat2(s);
}

/* Leaves the candidates in c.list, p being their probabilities times the returned *sum. */
static int run_chain(pl_sampler *s, const float *logits, const uint32_t *mask, double *sum)
{
    pl_candidates_set(&s->c, logits);
    int rc = mask ? pl_candidates_mask(&s->c, mask) : PL_OK;
    if (!rc)
        rc = apply_bias(s);
    if (!rc && s->o.mirostat)
        rc = run_mirostat(s);
    for (int32_t i = 0; !rc && !s->o.mirostat && i < s->o.n_steps; i++)
        rc = pl_step_run(s, i);
    if (!rc)
        rc = pl_keep_all(&s->c);
    if (rc)
        return rc;
    if (s->c.list.n == 0)
        return PL_SAMPLE_EEMPTY;
    if (adaptive(s))
        rc = pl_step_adaptive(s);
    *sum = pl_list_softmax(&s->c);
    return rc;
}

/* The position that a uniform number in [0, 1) falls on; one with p = 0 is never drawn. */
static int32_t draw(const pl_list *l, double target)
{
    double run = 0;
    int32_t last = 0;
    for (int32_t i = 0; i < l->n; i++) {
        if (l->p[i] <= 0.0f)
            continue;
        run += (double)l->p[i];
        if (run > target)
            return i;
        last = i;
    }
    return last; /* the sum in another order was a rounding larger */
}

int pl_sample_masked(pl_sampler *s, const float *logits, const uint32_t *mask)
{
    double sum;
    int rc = run_chain(s, logits, mask, &sum);
    if (rc)
        return rc;
    const pl_list *l = &s->c.list;
    int32_t at = draw(l, pl_random(s) * sum);
    if (s->o.mirostat)
        s->st.mu -= s->o.mirostat_eta * (-log((double)l->p[at] / sum) / LN2 - s->o.mirostat_tau);
    if (adaptive(s)) {
        s->st.pending_token = l->id[at];
        memcpy(&s->st.pending_p, &s->c.sort.keys[at], sizeof s->st.pending_p);
    }
    return l->id[at];
}

int pl_sample(pl_sampler *s, const float *logits, int32_t n_vocab)
{
    return n_vocab == s->o.n_vocab ? pl_sample_masked(s, logits, NULL) : PL_EINVAL;
}

int pl_sampler_accept(pl_sampler *s, const int32_t *tokens, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        if (tokens[i] < 0 || tokens[i] >= s->o.n_tokens)
            return PL_EINVAL;
    for (int32_t i = 0; i < n; i++) {
        if (tokens[i] == s->st.pending_token) {
            s->st.ema_sum = s->st.pending_p + s->o.adaptive_decay * s->st.ema_sum;
            s->st.ema_weight = 1.0 + s->o.adaptive_decay * s->st.ema_weight;
        }
        s->st.pending_token = -1;
        pl_history_push(&s->history, tokens[i]);
    }
    return PL_OK;
}

int pl_sampler_candidates(pl_sampler *s, const float *logits, int32_t n_vocab, int32_t *ids, float *out_logits, float *probs)
{
    double sum;
    if (n_vocab != s->o.n_vocab)
        return PL_EINVAL;
    pl_sampler_state before = s->st; /* XTC draws a number */
    int rc = run_chain(s, logits, NULL, &sum);
    s->st = before;
    if (!rc)
        rc = pl_sort_list(&s->c);
    if (rc)
        return rc;
    const pl_list *l = &s->c.list;
    sum = pl_list_softmax(&s->c);
    for (int32_t i = 0; i < l->n; i++) {
        ids[i] = l->id[i];
        out_logits[i] = l->logit[i];
        probs[i] = (float)((double)l->p[i] / sum);
    }
    return l->n;
}

int pl_sampler_history(const pl_sampler *s, int32_t *out, int32_t cap)
{
    const pl_history *h = &s->history;
    int32_t n = h->n < cap ? h->n : cap;
    for (int32_t i = 0; i < n; i++) {
        int32_t at = h->head - n + i;
        out[i] = h->ring[at < 0 ? at + h->cap : at];
    }
    return n;
}

void pl_sampler_get_state(const pl_sampler *s, pl_sampler_state *out) { *out = s->st; }

void pl_sampler_set_state(pl_sampler *s, const pl_sampler_state *state) { s->st = *state; }
