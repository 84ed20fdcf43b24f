/* The sampler's work on whole rows: finding the best of a vocabulary in one pass, and sorting.
 *
 * The k best of 128K logits cost one pass: it keeps the maximum of every block of 64. The k-th largest block maximum
 * is a lower bound of the k-th largest logit, so only blocks that reach it are looked at again. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sampling/sample.h"

int pl_candidates_init(pl_candidates *c, int32_t n_tokens)
{
    memset(c, 0, sizeof *c);
    c->kernels = pl_kernels_current();
    c->n = n_tokens;
    c->n_blocks = (n_tokens + PL_SAMPLE_BLOCK - 1) / PL_SAMPLE_BLOCK;
    c->block_max = malloc((size_t)c->n_blocks * sizeof(float));
    c->heap = malloc((size_t)c->n_blocks * sizeof(float));
    return c->block_max && c->heap ? PL_OK : PL_ENOMEM;
}

void pl_candidates_free(pl_candidates *c)
{
    free(c->work);
    free(c->block_max);
    free(c->heap);
    free(c->list.id);
    free(c->list.logit);
    free(c->list.p);
    free(c->sort.keys);
    free(c->sort.other);
}

void pl_candidates_set(pl_candidates *c, const float *row)
{
    c->row = row;
    c->dense = true;
    c->scanned = false;
    c->n_counted = c->n;
    c->list.n = 0;
    c->list.sorted = false;
}

static int need_work(pl_candidates *c)
{
    if (!c->work)
        c->work = malloc((size_t)c->n * sizeof(float));
    return c->work ? PL_OK : PL_ENOMEM;
}

/* Before a dense row is changed: from here on `row` is our own copy. */
int pl_make_writable(pl_candidates *c)
{
    c->scanned = false;
    if (c->row == c->work)
        return PL_OK;
    if (need_work(c))
        return PL_ENOMEM;
    memcpy(c->work, c->row, (size_t)c->n * sizeof(float));
    c->row = c->work;
    return PL_OK;
}

/* From here on `row` is our own copy, -inf where the bit of a token (id % 32 of word id / 32) is 0. */
int pl_candidates_mask(pl_candidates *c, const uint32_t *mask)
{
    if (need_work(c))
        return PL_ENOMEM;
    for (int32_t from = 0; from < c->n; from += 32) {
        const uint32_t word = mask[from / 32];
        const int32_t n = c->n - from < 32 ? c->n - from : 32;
        for (int32_t i = 0; i < n; i++)
            c->work[from + i] = word >> i & 1 ? c->row[from + i] : -INFINITY;
    }
    c->row = c->work;
    c->scanned = false;
    return PL_OK;
}

/* Block maxima and the row's maximum; refuses rows that cannot be sampled. */
int pl_scan(pl_candidates *c)
{
    if (c->scanned)
        return PL_OK;
    if (c->kernels->block_maxima(c->row, c->n, c->block_max) != 0)
        return PL_SAMPLE_ENAN;
    float max = -INFINITY;
    for (int32_t b = 0; b < c->n_blocks; b++)
        max = c->block_max[b] > max ? c->block_max[b] : max;
    if (max == -INFINITY)
        return PL_SAMPLE_EEMPTY;
    c->max = max;
    c->scanned = true;
    return PL_OK;
}

/* The sum of e^(logit - max) of a scanned row. */
double pl_row_softmax_sum(const pl_candidates *c) { return c->kernels->softmax_sum(c->row, c->n, c->max); }

static void sift_down(float *heap, int32_t n, int32_t i)
{
    float v = heap[i];
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= v)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = v;
}

/* The k-th largest of x (n,), 1 <= k <= n, by a heap of the k largest so far whose root is the least of them. */
static float kth_largest(const float *x, int32_t n, int32_t k, float *heap)
{
    memcpy(heap, x, (size_t)k * sizeof(float));
    for (int32_t i = k / 2 - 1; i >= 0; i--)
        sift_down(heap, k, i);
    for (int32_t i = k; i < n; i++) {
        if (x[i] > heap[0]) {
            heap[0] = x[i];
            sift_down(heap, k, 0);
        }
    }
    return heap[0];
}

static int list_reserve(pl_list *l, int32_t n)
{
    if (n <= l->cap)
        return PL_OK;
    size_t cap = (size_t)n + (size_t)n / 2;
    if (pl_grow((void **)&l->id, cap, sizeof(int32_t)) || pl_grow((void **)&l->logit, cap, sizeof(float)) ||
        pl_grow((void **)&l->p, cap, sizeof(float)))
        return PL_ENOMEM;
    l->cap = (int32_t)(cap > INT32_MAX ? INT32_MAX : cap);
    return PL_OK;
}

/* The least float that is not below x: `logit >= t` in float then means the same as in double. */
static float float_at_least(double x)
{
    float t = (float)x;
    return (double)t < x ? nextafterf(t, INFINITY) : t;
}

static int dense_keep_from(pl_candidates *c, float t)
{
    pl_list *l = &c->list;
    l->n = 0;
    for (int32_t b = 0; b < c->n_blocks; b++) {
        if (c->block_max[b] < t)
            continue;
        int32_t from = b * PL_SAMPLE_BLOCK;
        int32_t to = c->n - from < PL_SAMPLE_BLOCK ? c->n : from + PL_SAMPLE_BLOCK;
        /* Without a branch: each is written, and overwritten by the next if it does not stay. */
        int rc = list_reserve(l, l->n + PL_SAMPLE_BLOCK + 1);
        if (rc)
            return rc;
        int32_t n = l->n;
        for (int32_t i = from; i < to; i++) {
            l->id[n] = i;
            l->logit[n] = c->row[i];
            n += (c->row[i] >= t) & (c->row[i] > -INFINITY);
        }
        l->n = n;
    }
    c->dense = false;
    l->sorted = false;
    return PL_OK;
}

/* Drops the candidates with a logit below `threshold`. */
int pl_keep_from(pl_candidates *c, double threshold)
{
    float t = float_at_least(threshold);
    if (c->dense) {
        int rc = pl_scan(c);
        return rc ? rc : dense_keep_from(c, t);
    }
    pl_list *l = &c->list;
    int32_t n = 0;
    for (int32_t i = 0; i < l->n; i++) {
        l->id[n] = l->id[i];
        l->logit[n] = l->logit[i];
        n += l->logit[i] >= t;
    }
    l->n = n;
    return PL_OK;
}

/* Whether all logits of a row of n, which has no NaN, are above -inf. */
static bool all_finite(const float *row, int32_t n)
{
    int32_t finite = 1;
    for (int32_t i = 0; i < n; i++)
        finite &= row[i] > -INFINITY;
    return finite;
}

int pl_keep_all(pl_candidates *c)
{
    if (!c->dense)
        return PL_OK;
    pl_list *l = &c->list;
    int rc = pl_scan(c);
    if (!rc)
        rc = list_reserve(l, c->n + 1);
    if (rc || !all_finite(c->row, c->n))
        return rc ? rc : dense_keep_from(c, -INFINITY);
    for (int32_t i = 0; i < c->n; i++)
        l->id[i] = i;
    memcpy(l->logit, c->row, (size_t)c->n * sizeof *l->logit);
    l->n = c->n;
    l->sorted = c->dense = false;
    return PL_OK;
}

/* Drops all but the k >= 1 best and sorts them. */
int pl_keep_top(pl_candidates *c, int32_t k)
{
    if (c->dense) {
        int rc = pl_scan(c);
        if (rc)
            return rc;
        float t = -INFINITY;
        if (k == 1)
            t = c->max;
        else if (k <= c->n_blocks)
            t = kth_largest(c->block_max, c->n_blocks, k, c->heap);
        rc = dense_keep_from(c, t);
        if (rc)
            return rc;
    }
    int rc = pl_sort_list(c);
    if (rc)
        return rc;
    if (k < c->list.n)
        c->list.n = k;
    return PL_OK;
}

/* The largest logit of a list that is not empty; NaN if one is NaN or +inf. */
float pl_list_max(pl_candidates *c)
{
    const pl_list *l = &c->list;
    if (l->sorted)
        return l->logit[0];
    if (c->kernels->block_maxima(l->logit, l->n, c->heap) != 0)
        return NAN;
    float max = -INFINITY;
    for (int32_t b = 0; b * PL_SAMPLE_BLOCK < l->n; b++)
        max = c->heap[b] > max ? c->heap[b] : max;
    return max;
}

/* Fills p with e^(logit - max), not normalised, for a list that is not empty -> their sum. */
double pl_list_softmax(pl_candidates *c)
{
    pl_list *l = &c->list;
    return c->kernels->softmax_terms(l->logit, l->n, pl_list_max(c), l->p);
}
