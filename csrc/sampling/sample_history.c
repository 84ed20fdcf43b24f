/* What the sampler remembers: the tokens accepted so far, and the two steps that look back on them. */

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sampling/sample.h"

static int32_t *filled(size_t n, int32_t value)
{
    int32_t *a = malloc((n ? n : 1) * sizeof *a);
    if (a)
        for (size_t i = 0; i < n; i++)
            a[i] = value;
    return a;
}

/* Breakers as linked lists by their first token; the parameters hold each as its length and its tokens. */
static int dry_init_breakers(pl_dry *d, const pl_sampler_params *o)
{
    size_t n_tokens = 0;
    for (int32_t i = 0; i < o->n_breakers; i++) {
        if (o->breaker_lens[i] < 1)
            return PL_EINVAL;
        n_tokens += (size_t)o->breaker_lens[i];
    }
    d->next = filled((size_t)o->n_breakers, -1);
    d->offset = filled((size_t)o->n_breakers + 1, 0);
    d->tail = filled(n_tokens, 0);
    if (!d->next || !d->offset || !d->tail)
        return PL_ENOMEM;
    const int32_t *tokens = o->breaker_tokens;
    for (int32_t i = 0; i < o->n_breakers; i++) {
        int32_t head = tokens[0], tail_len = o->breaker_lens[i] - 1;
        if (head < 0 || head >= o->n_tokens)
            return PL_EINVAL;
        if (tail_len)
            memcpy(d->tail + d->offset[i], tokens + 1, (size_t)tail_len * sizeof *tokens);
        d->offset[i + 1] = d->offset[i] + tail_len;
        d->next[i] = d->first[head];
        d->first[head] = i;
        tokens += o->breaker_lens[i];
    }
    return PL_OK;
}

static int dry_init(pl_dry *d, const pl_sampler_params *o)
{
    d->window = o->dry_multiplier != 0.0 && o->dry_base >= 1.0 ? o->dry_last_n : 0;
    if (d->window == 0)
        return PL_OK;
    d->tokens = filled((size_t)d->window, 0);
    d->z = filled((size_t)d->window, 0);
    d->touched = filled((size_t)d->window, 0);
    d->repeat = filled((size_t)o->n_tokens, 0);
    d->first = filled((size_t)o->n_tokens, -1);
    if (!d->tokens || !d->z || !d->touched || !d->repeat || !d->first)
        return PL_ENOMEM;
    return dry_init_breakers(d, o);
}

static bool penalties_on(const pl_sampler_params *o)
{
    return o->repeat_penalty != 1.0 || o->presence_penalty != 0.0 || o->frequency_penalty != 0.0;
}

int pl_history_init(pl_sampler *s)
{
    pl_history *h = &s->history;
    int rc = dry_init(&s->dry, &s->o);
    if (rc)
        return rc;
    h->window = penalties_on(&s->o) ? s->o.penalty_last_n : 0;
    h->cap = s->o.history_len > 1 ? s->o.history_len : 1;
    if (h->window > h->cap)
        h->cap = h->window;
    if (s->dry.window > h->cap)
        h->cap = s->dry.window;
    h->ring = filled((size_t)h->cap, 0);
    if (!h->ring)
        return PL_ENOMEM;
    if (h->window == 0)
        return PL_OK;
    h->distinct = malloc((size_t)h->window * sizeof *h->distinct);
    h->slot = filled((size_t)s->o.n_tokens, -1);
    return h->distinct && h->slot ? PL_OK : PL_ENOMEM;
}

void pl_history_free(pl_sampler *s)
{
    pl_dry *d = &s->dry;
    int32_t *all[] = {s->history.ring, s->history.slot, d->tokens, d->z,    d->repeat,
                      d->touched,      d->first,        d->next,   d->tail, d->offset};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    free(s->history.distinct);
}

void pl_history_clear(pl_history *h)
{
    for (int32_t i = 0; i < h->n_distinct; i++)
        h->slot[h->distinct[i].token] = -1;
    h->n_distinct = 0;
    h->n = 0;
    h->head = 0;
}

/* The i-th token from the end, 0 = the newest. */
static int32_t recent(const pl_history *h, int32_t i)
{
    int32_t at = h->head - 1 - i;
    return h->ring[at < 0 ? at + h->cap : at];
}

static void forget_one(pl_history *h, int32_t token)
{
    int32_t at = h->slot[token];
    if (--h->distinct[at].count > 0)
        return;
    h->slot[token] = -1;
    pl_token_count last = h->distinct[--h->n_distinct];
    if (last.token == token)
        return;
    h->distinct[at] = last;
    h->slot[last.token] = at;
}

void pl_history_push(pl_history *h, int32_t token)
{
    if (h->window > 0) {
        if (h->n >= h->window)
            forget_one(h, recent(h, h->window - 1));
        int32_t at = h->slot[token];
        if (at < 0) {
            at = h->slot[token] = h->n_distinct++;
            h->distinct[at] = (pl_token_count){token, 0};
        }
        h->distinct[at].count++;
    }
    h->ring[h->head] = token;
    h->head = h->head + 1 == h->cap ? 0 : h->head + 1;
    if (h->n < h->cap)
        h->n++;
}

/* A logit that penalties below 0 raised: to the largest number at most, unless it was infinite before. */
static float raised(float before, float x) { return x > FLT_MAX && before < INFINITY ? FLT_MAX : x; }

/* Repeat penalty (https://arxiv.org/abs/1909.05858; a logit <= 0 is multiplied, so that it does not rise), then the
 * frequency and presence penalties. */
static float penalized(const pl_sampler_params *o, float logit, int32_t count)
{
    float x = logit <= 0.0f ? logit * (float)o->repeat_penalty : logit / (float)o->repeat_penalty;
    x = raised(logit, x);
    return raised(x, x - ((float)count * (float)o->frequency_penalty + (float)o->presence_penalty));
}

int pl_apply_penalties(pl_sampler *s)
{
    pl_history *h = &s->history;
    pl_candidates *c = &s->c;
    if (h->n_distinct == 0)
        return PL_OK;
    if (c->dense) {
        int rc = pl_make_writable(c);
        if (rc)
            return rc;
        for (int32_t i = 0; i < h->n_distinct; i++) {
            float *x = &c->work[h->distinct[i].token];
            *x = penalized(&s->o, *x, h->distinct[i].count);
        }
        return PL_OK;
    }
    for (int32_t i = 0; i < c->list.n; i++) {
        int32_t at = h->slot[c->list.id[i]];
        if (at >= 0)
            c->list.logit[i] = penalized(&s->o, c->list.logit[i], h->distinct[at].count);
    }
    c->list.sorted = false;
    return PL_OK;
}

/* Tokens after the head of the longest breaker that begins `at` tokens from the end; -1: none does. */
static int32_t breaker_at(const pl_dry *d, int32_t at)
{
    int32_t longest = -1;
    for (int32_t b = d->first[d->tokens[at]]; b >= 0; b = d->next[b]) {
        int32_t len = d->offset[b + 1] - d->offset[b], i = 0;
        if (len <= longest || len > at)
            continue;
        while (i < len && d->tail[d->offset[b] + i] == d->tokens[at - 1 - i])
            i++;
        if (i == len)
            longest = len;
    }
    return longest;
}

/* The tokens since the newest complete breaker: no repetition counts as longer than that. */
static int32_t tokens_since_breaker(const pl_dry *d, int32_t n)
{
    for (int32_t i = 0; i < n; i++) {
        int32_t tail = breaker_at(d, i);
        if (tail >= 0)
            return i - tail;
    }
    return n;
}

/* z[k] = how many tokens, read backwards from the k-th newest, equal those read backwards from the newest: the
 * Z-function of the reversed history, in linear time. */
static void z_function(const int32_t *t, int32_t n, int32_t *z)
{
    z[0] = n;
    for (int32_t k = 1, left = 0, right = 0; k < n; k++) {
        int32_t len = 0;
        if (k < right)
            len = z[k - left] < right - k ? z[k - left] : right - k;
        while (k + len < n && t[len] == t[k + len])
            len++;
        z[k] = len;
        if (k + len > right) {
            left = k;
            right = k + len;
        }
    }
}

static bool single_token_breaker(const pl_dry *d, int32_t token)
{
    for (int32_t b = d->first[token]; b >= 0; b = d->next[b])
        if (d->offset[b + 1] == d->offset[b])
            return true;
    return false;
}

/* Fills `repeat` and `touched`: for each token, the longest repetition that it would extend. */
static void find_repeats(pl_sampler *s)
{
    pl_dry *d = &s->dry;
    int32_t n = s->history.n < d->window ? s->history.n : d->window, allowed = s->o.dry_allowed_length;
    d->n_touched = 0;
    if (n <= allowed)
        return;
    for (int32_t i = 0; i < n; i++)
        d->tokens[i] = recent(&s->history, i);
    int32_t limit = tokens_since_breaker(d, n);
    if (limit < allowed)
        return;
    z_function(d->tokens, n, d->z);
    for (int32_t k = 1; k < n; k++) {
        int32_t len = d->z[k] < limit ? d->z[k] : limit, token = d->tokens[k - 1];
        if (len < allowed || single_token_breaker(d, token))
            continue;
        /* +1 so that 0 means "extends nothing" even when the allowed length is 0 */
        if (d->repeat[token] == 0)
            d->touched[d->n_touched++] = token;
        if (len + 1 > d->repeat[token])
            d->repeat[token] = len + 1;
    }
}

static float dry_penalty(const pl_sampler_params *o, int32_t repeat)
{
    int32_t exponent = repeat - 1 - o->dry_allowed_length;
    if (o->dry_base > 1.000001) {
        int32_t largest = (int32_t)(88.7228391 / log(o->dry_base)); /* ln of the largest float: no overflow */
        if (largest > 0 && exponent > largest)
            exponent = largest;
    }
    return (float)fmax(o->dry_multiplier * pow(o->dry_base, exponent), -FLT_MAX);
}

/* Don't repeat yourself, https://github.com/oobabooga/text-generation-webui/pull/5677: a token that would extend a
 * repetition of `allowed` tokens or more loses multiplier * base ^ (length - allowed). */
int pl_apply_dry(pl_sampler *s)
{
    pl_dry *d = &s->dry;
    pl_candidates *c = &s->c;
    if (d->window == 0)
        return PL_OK;
    find_repeats(s);
    if (d->n_touched == 0)
        return PL_OK;
    int rc = c->dense ? pl_make_writable(c) : PL_OK;
    if (!rc && c->dense)
        for (int32_t i = 0; i < d->n_touched; i++) {
            float *x = &c->work[d->touched[i]];
            *x = raised(*x, *x - dry_penalty(&s->o, d->repeat[d->touched[i]]));
        }
    if (!rc && !c->dense)
        for (int32_t i = 0; i < c->list.n; i++)
            if (d->repeat[c->list.id[i]]) {
                float *x = &c->list.logit[i];
                *x = raised(*x, *x - dry_penalty(&s->o, d->repeat[c->list.id[i]]));
            }
    for (int32_t i = 0; i < d->n_touched; i++)
        d->repeat[d->touched[i]] = 0;
    c->list.sorted = false;
    return rc;
}
