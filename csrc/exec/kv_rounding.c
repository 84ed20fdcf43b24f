/* How keys of 4 bits are rounded: so that queries see the least of it.
 *
 * An error e of a key costs what it adds to scores: the mean of (q . e)^2 over queries, e^T S e with S the second moment of
 * the queries. S is far from round: queries lie in few directions. With S = M^T D M, M triangular with ones on the diagonal,
 * that is a sum over dims of D[j] (e[j] + sum over i < j of M[j][i] e[i])^2: dims are rounded one after another, each to what
 * is nearest when errors made so far are counted in, and what is left grows with the geometric mean of S's eigenvalues
 * instead of the arithmetic one. Only what is written changes, not how it is read. (LDLQ, Chee et al. 2023, does so to
 * weights.)
 *
 * What all keys of a head have in common adds the same to all scores of a query, and softmax does not see it: their mean is
 * taken off first, so that it does not decide the scales.
 *
 * Nor does softmax see it when a little more or less is taken off. Most queries attend to the first position, whose key is
 * the longest and hardly depends on what stands there (an attention sink, Xiao et al. 2023), so that its error costs as much
 * as those of hundreds of others: the mean is moved by that error, and the first key then is exactly what codes can say.
 *
 * Dims that are small in keys and large in queries are made larger in keys and smaller in queries, both of a pair that rope
 * turns alike, so that products stay what they are.
 *
 * Of values, whose weights sum up to one, a part of their mean is taken off and added to what was summed. That is moved in the
 * same way by the error of the first, which is small as values go and would otherwise be far from it. */
#include "exec/kv_rounding.h"
#include "api.h"
#include "exec/pages.h"
#include "platform/os.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DAMPING 0.05 /* of the mean of S's diagonal, added to it: for directions that few queries were seen in */

/* Of one head: the stretch, what undoes it, the mean, then a row of factors for each dim; the latter two are turned as the
 * cache keeps keys. */
enum { STRETCH, SHRINK, MEAN, FACTORS };
static int64_t head_floats(int k_dim) { return (int64_t)(k_dim + FACTORS) * PL_KEY_STRIDE(k_dim); }

int64_t pl_cache_rounding_bytes(const pl_cache *c)
{
    if (c->k.rotation == 0 || c->k.head_dim > PL_SHAPED_DIM)
        return 0;
    return c->n_layers * (int64_t)c->kv_heads * head_floats(c->k.head_dim) * (int64_t)sizeof(float);
}

static float *head_at(const pl_cache *c, int layer, int head)
{
    return c->rounding + ((int64_t)layer * c->kv_heads + head) * head_floats(c->k.head_dim);
}

pl_key_rounding pl_key_rounding_of(const pl_cache *c, int layer, int head)
{
    const int64_t stride = PL_KEY_STRIDE(c->k.head_dim);
    const float *at = c->rounding ? head_at(c, layer, head) : NULL;
    if (!at || at[FACTORS * stride] != 1.0f) /* the first of the diagonal: this head was given none */
        return (pl_key_rounding){NULL, NULL, NULL, NULL};
    return (pl_key_rounding){at + STRETCH * stride, at + SHRINK * stride, at + MEAN * stride, at + FACTORS * stride};
}

/* Rows, then columns, of a (n, n) matrix. */
static void turn_both(float *s, int n, int run)
{
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < n; i++)
            pl_kernels_current()->rotate(s + (int64_t)i * n, n, run);
        for (int i = 0; i < n; i++)
            for (int j = 0; j < i; j++) {
                float x = s[i * n + j];
                s[i * n + j] = s[j * n + i];
                s[j * n + i] = x;
            }
    }
}

/* s (n, n) -> out[i * stride + j] = M[j][i] for j > i, 1 on the diagonal. Returns whether s is positive and finite. */
static int factorize(double *s, int n, float *out, int64_t stride)
{
    for (int j = n - 1; j >= 0; j--) {
        const double *row = s + (int64_t)j * n;
        if (!(row[j] > 0.0) || !isfinite(row[j]))
            return 0;
        for (int i = 0; i < j; i++) {
            const double factor = row[i] / row[j];
            for (int k = 0; k <= i; k++)
                s[(int64_t)i * n + k] -= factor * row[k];
            out[i * stride + j] = (float)factor;
        }
        out[j * stride + j] = 1.0f;
    }
    return 1;
}

/* S of `moment`, turned and damped; NULL when out of memory. */
static double *damped(const float *moment, int n, int run)
{
    float *turned = malloc(sizeof(float) * (size_t)(n * n));
    double *s = malloc(sizeof(double) * (size_t)(n * n)), trace = 0.0;
    if (turned && s) {
        memcpy(turned, moment, sizeof(float) * (size_t)(n * n));
        turn_both(turned, n, run);
        for (int i = 0; i < n * n; i++)
            s[i] = (double)turned[i];
        for (int i = 0; i < n; i++)
            trace += s[i * n + i];
        for (int i = 0; i < n; i++)
            s[i * n + i] += DAMPING * trace / n;
    } else {
        free(s);
        s = NULL;
    }
    free(turned);
    return s;
}

/* To binary16's precision; 0 where its steps are larger. All that leads to a mean is exact or rounded once, so that it has
 * the same bits on every CPU. */
static float half_of(float x)
{
    int exponent;
    float fraction = frexpf(x, &exponent);
    return exponent < -13 ? 0.0f : ldexpf(rintf(ldexpf(fraction, 11)), exponent - 11);
}

/* mean, first: (n), both turned -> the nearest mean with which first - mean has no error. */
static void move_mean(float *mean, const float *first, int n)
{
    for (int begin = 0; begin < n; begin += 32) {
        const int end = begin + 32 < n ? begin + 32 : n;
        float top = 0.0f;
        for (int i = begin; i < end; i++)
            if (fabsf(first[i] - mean[i]) > fabsf(top))
                top = first[i] - mean[i];
        const float scale = half_of(top / -8.0f);
        for (int i = begin; i < end && scale != 0.0f; i++) {
            const float code = floorf((first[i] - mean[i]) / scale + 0.5f);
            mean[i] = first[i] - fminf(fmaxf(code, -8.0f), 7.0f) * scale;
        }
    }
}

/* Whether all can be computed with. */
static int usable(const pl_key_statistics *x, int n)
{
    int good = 1;
    for (int i = 0; i < n; i++)
        good = good && isfinite(x->mean[i]) && isfinite(x->first[i]) && x->stretch[i] > 0.0f && isfinite(x->stretch[i]) &&
               isfinite(1.0f / x->stretch[i]);
    return good;
}

int pl_cache_shape_keys(pl_cache *c, int layer, int head, const pl_key_statistics *x)
{
    const int n = c->k.head_dim;
    const int64_t bytes = pl_cache_rounding_bytes(c), stride = PL_KEY_STRIDE(n);
    if (!bytes || layer < 0 || layer >= c->n_layers || head < 0 || head >= c->kv_heads)
        return PL_EINVAL;
    if (!c->rounding && !(c->rounding = pl_alloc((size_t)bytes, 1)))
        return PL_ENOMEM;
    double *s = damped(x->moment, n, c->k.rotation);
    if (!s)
        return PL_ENOMEM;
    float *at = head_at(c, layer, head), *mean = at + MEAN * stride, first[PL_SHAPED_DIM];
    const int good = factorize(s, n, at + FACTORS * stride, stride) && usable(x, n);
    free(s);
    if (!good) {
        memset(at, 0, sizeof(float) * (size_t)head_floats(n));
        return PL_EUNSUPPORTED;
    }
    for (int i = 0; i < n; i++) {
        at[STRETCH * stride + i] = x->stretch[i];
        at[SHRINK * stride + i] = 1.0f / x->stretch[i];
    }
    memcpy(mean, x->mean, sizeof(float) * (size_t)n);
    memcpy(first, x->first, sizeof(float) * (size_t)n);
    pl_kernels_current()->rotate(mean, n, c->k.rotation);
    pl_kernels_current()->rotate(first, n, c->k.rotation);
    move_mean(mean, first, n);
    return PL_OK;
}

int64_t pl_cache_shift_bytes(const pl_cache *c)
{
    return c->v.rotation ? c->n_layers * (int64_t)c->kv_heads * c->v.head_dim * (int64_t)sizeof(float) : 0;
}

static float *shift_at(const pl_cache *c, int layer, int head)
{
    return c->shifts + ((int64_t)layer * c->kv_heads + head) * c->v.head_dim;
}

const float *pl_value_shift_of(const pl_cache *c, int layer, int head) { return c->shifts ? shift_at(c, layer, head) : NULL; }

int pl_cache_shift_values(pl_cache *c, int layer, int head, const float *mean, const float *first)
{
    const int n = c->v.head_dim;
    const int64_t bytes = pl_cache_shift_bytes(c);
    if (!bytes || layer < 0 || layer >= c->n_layers || head < 0 || head >= c->kv_heads)
        return PL_EINVAL;
    if (!c->shifts && !(c->shifts = pl_alloc((size_t)bytes, 1)))
        return PL_ENOMEM;
    for (int i = 0; i < n; i++)
        if (!isfinite(mean[i]) || !isfinite(first[i]))
            return PL_EUNSUPPORTED;
    float *shift = shift_at(c, layer, head), turned[PL_MAX_HEAD_DIM];
    memcpy(shift, mean, sizeof(float) * (size_t)n);
    memcpy(turned, first, sizeof(float) * (size_t)n);
    pl_kernels_current()->rotate(shift, n, c->v.rotation);
    pl_kernels_current()->rotate(turned, n, c->v.rotation);
    move_mean(shift, turned, n);
    return PL_OK;
}
