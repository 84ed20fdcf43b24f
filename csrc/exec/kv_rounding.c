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
 * taken off first, so that it does not decide the scales. */
#include "exec/kv_rounding.h"
#include "api.h"
#include "exec/pages.h"
#include "platform/os.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DAMPING 0.05 /* of the mean of S's diagonal, added to it: for directions that few queries were seen in */

/* Of one head: the mean, then a row of factors for each dim, all turned as the cache keeps keys. */
static int64_t head_floats(int k_dim) { return (int64_t)(k_dim + 1) * PL_KEY_STRIDE(k_dim); }

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
    const float *at = c->rounding ? head_at(c, layer, head) : NULL;
    if (!at || at[PL_KEY_STRIDE(c->k.head_dim)] != 1.0f) /* the first of the diagonal: this head was given none */
        return (pl_key_rounding){NULL, NULL};
    return (pl_key_rounding){at, at + PL_KEY_STRIDE(c->k.head_dim)};
}

/* Rows, then columns, of a (n, n) matrix. */
static void turn_both(float *s, int n, int run)
{
    for (int side = 0; side < 2; side++) {
        for (int i = 0; i < n; i++)
            pl_rotate(s + (int64_t)i * n, n, run);
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

int pl_cache_shape_keys(pl_cache *c, int layer, int head, const float *moment, const float *mean)
{
    const int n = c->k.head_dim;
    const int64_t bytes = pl_cache_rounding_bytes(c);
    if (!bytes || layer < 0 || layer >= c->n_layers || head < 0 || head >= c->kv_heads)
        return PL_EINVAL;
    if (!c->rounding && !(c->rounding = pl_alloc((size_t)bytes, 1)))
        return PL_ENOMEM;
    double *s = damped(moment, n, c->k.rotation);
    if (!s)
        return PL_ENOMEM;
    float *at = head_at(c, layer, head);
    int good = factorize(s, n, at + PL_KEY_STRIDE(n), PL_KEY_STRIDE(n));
    free(s);
    for (int i = 0; i < n; i++)
        good = good && isfinite(mean[i]);
    memcpy(at, mean, sizeof(float) * (size_t)n);
    pl_rotate(at, n, c->k.rotation);
    if (!good)
        memset(at, 0, sizeof(float) * (size_t)head_floats(n));
    return good ? PL_OK : PL_EUNSUPPORTED;
}
