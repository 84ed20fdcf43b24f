/* The sampler's work on whole rows: finding the best of a vocabulary in one pass, sorting, sums of exponentials.
 *
 * The k best of 128K logits cost one pass: it keeps the maximum of every block of 64. The k-th largest block maximum
 * is a lower bound of the k-th largest logit, so only blocks that reach it are looked at again. */

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "sampling/sample.h"

enum { EXP_BLOCK = 256, INSERTION_MAX = 96, RADIX = 256 };

int pl_candidates_init(pl_candidates *c, int32_t n_tokens) {
    memset(c, 0, sizeof *c);
    c->n = n_tokens;
    c->n_blocks = (n_tokens + PL_SAMPLE_BLOCK - 1) / PL_SAMPLE_BLOCK;
    c->block_max = malloc((size_t)c->n_blocks * sizeof(float));
    c->heap = malloc((size_t)c->n_blocks * sizeof(float));
    return c->block_max && c->heap ? PL_OK : PL_ENOMEM;
}

void pl_candidates_free(pl_candidates *c) {
    free(c->work);
    free(c->block_max);
    free(c->heap);
    free(c->list.id);
    free(c->list.logit);
    free(c->list.p);
    free(c->sort.keys);
    free(c->sort.other);
}

void pl_candidates_set(pl_candidates *c, const float *row) {
    c->row = row;
    c->dense = true;
    c->scanned = false;
    c->list.n = 0;
    c->list.sorted = false;
}

static int need_work(pl_candidates *c) {
    if (!c->work) c->work = malloc((size_t)c->n * sizeof(float));
    return c->work ? PL_OK : PL_ENOMEM;
}

/* Before a dense row is changed: from here on `row` is our own copy. */
int pl_make_writable(pl_candidates *c) {
    c->scanned = false;
    if (c->row == c->work) return PL_OK;
    if (need_work(c)) return PL_ENOMEM;
    memcpy(c->work, c->row, (size_t)c->n * sizeof(float));
    c->row = c->work;
    return PL_OK;
}

/* From here on `row` is our own copy, -inf where the bit of a token (id % 32 of word id / 32) is 0. */
int pl_candidates_mask(pl_candidates *c, const uint32_t *mask) {
    if (need_work(c)) return PL_ENOMEM;
    for (int32_t from = 0; from < c->n; from += 32) {
        const uint32_t word = mask[from / 32];
        const int32_t n = c->n - from < 32 ? c->n - from : 32;
        for (int32_t i = 0; i < n; i++) c->work[from + i] = word >> i & 1 ? c->row[from + i] : -INFINITY;
    }
    c->row = c->work;
    c->scanned = false;
    return PL_OK;
}

/* Signed integers in the order of the floats (NaN above +inf or below -inf). Their maxima vectorise, which those of
 * floats do not while NaN is allowed. */
static inline int32_t signed_key(float x) {
    int32_t i;
    memcpy(&i, &x, 4);
    return i ^ ((i >> 31) & 0x7fffffff);
}

static inline int32_t is_nan(float x) {
    int32_t i;
    memcpy(&i, &x, 4);
    return (i & 0x7fffffff) > 0x7f800000;
}

/* The maximum of n logits; *bad becomes nonzero if one is NaN. */
static inline float block_max(const float *x, int32_t n, int32_t *bad) {
    int32_t key = INT32_MIN, nan = 0;
    for (int32_t i = 0; i < n; i++) {
        int32_t k = signed_key(x[i]);
        key = k > key ? k : key;
        nan |= is_nan(x[i]);
    }
    *bad |= nan;
    key ^= (key >> 31) & 0x7fffffff;
    float max;
    memcpy(&max, &key, 4);
    return max;
}

/* Block maxima and the row's maximum; refuses rows that cannot be sampled. */
int pl_scan(pl_candidates *c) {
    if (c->scanned) return PL_OK;
    int32_t bad = 0;
    float max = -INFINITY;
    for (int32_t b = 0; b < c->n_blocks; b++) {
        int32_t from = b * PL_SAMPLE_BLOCK, left = c->n - from;
        float m = left >= PL_SAMPLE_BLOCK ? block_max(c->row + from, PL_SAMPLE_BLOCK, &bad)
                                          : block_max(c->row + from, left, &bad);
        c->block_max[b] = m;
        max = m > max ? m : max;
    }
    if (bad || max == INFINITY) return PL_SAMPLE_ENAN;
    if (max == -INFINITY) return PL_SAMPLE_EEMPTY;
    c->max = max;
    c->scanned = true;
    return PL_OK;
}

static void sift_down(float *heap, int32_t n, int32_t i) {
    float v = heap[i];
    for (;;) {
        int32_t child = 2 * i + 1;
        if (child >= n) break;
        if (child + 1 < n && heap[child + 1] < heap[child]) child++;
        if (heap[child] >= v) break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = v;
}

/* The k-th largest of x (n,), 1 <= k <= n, by a heap of the k largest so far whose root is the least of them. */
static float kth_largest(const float *x, int32_t n, int32_t k, float *heap) {
    memcpy(heap, x, (size_t)k * sizeof(float));
    for (int32_t i = k / 2 - 1; i >= 0; i--) sift_down(heap, k, i);
    for (int32_t i = k; i < n; i++) {
        if (x[i] > heap[0]) {
            heap[0] = x[i];
            sift_down(heap, k, 0);
        }
    }
    return heap[0];
}

static int grow(void **p, size_t n, size_t size) {
    void *q = realloc(*p, n * size);
    if (!q) return PL_ENOMEM;
    *p = q;
    return PL_OK;
}

static int list_reserve(pl_list *l, int32_t n) {
    if (n <= l->cap) return PL_OK;
    size_t cap = (size_t)n + (size_t)n / 2;
    if (grow((void **)&l->id, cap, sizeof(int32_t)) || grow((void **)&l->logit, cap, sizeof(float)) ||
        grow((void **)&l->p, cap, sizeof(float)))
        return PL_ENOMEM;
    l->cap = (int32_t)(cap > INT32_MAX ? INT32_MAX : cap);
    return PL_OK;
}

/* The least float that is not below x: `logit >= t` in float then means the same as in double. */
static float float_at_least(double x) {
    float t = (float)x;
    return (double)t < x ? nextafterf(t, INFINITY) : t;
}

static int dense_keep_from(pl_candidates *c, float t) {
    pl_list *l = &c->list;
    l->n = 0;
    for (int32_t b = 0; b < c->n_blocks; b++) {
        if (c->block_max[b] < t) continue;
        int32_t from = b * PL_SAMPLE_BLOCK;
        int32_t to = c->n - from < PL_SAMPLE_BLOCK ? c->n : from + PL_SAMPLE_BLOCK;
        /* Without a branch: each is written, and overwritten by the next if it does not stay. */
        int rc = list_reserve(l, l->n + PL_SAMPLE_BLOCK + 1);
        if (rc) return rc;
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
int pl_keep_from(pl_candidates *c, double threshold) {
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

int pl_keep_all(pl_candidates *c) {
    if (!c->dense) return PL_OK;
    int rc = pl_scan(c);
    if (!rc) rc = list_reserve(&c->list, c->n + 1);
    return rc ? rc : dense_keep_from(c, -INFINITY);
}

/* Drops all but the k >= 1 best and sorts them. */
int pl_keep_top(pl_candidates *c, int32_t k) {
    if (c->dense) {
        int rc = pl_scan(c);
        if (rc) return rc;
        float t = -INFINITY;
        if (k == 1)
            t = c->max;
        else if (k <= c->n_blocks)
            t = kth_largest(c->block_max, c->n_blocks, k, c->heap);
        rc = dense_keep_from(c, t);
        if (rc) return rc;
    }
    int rc = pl_sort_list(c);
    if (rc) return rc;
    if (k < c->list.n) c->list.n = k;
    return PL_OK;
}

/* Unsigned integers in the order of the floats, which are not NaN; -0 and +0 become equal. */
uint32_t pl_order_key(float x) {
    x += 0.0f;
    uint32_t u;
    memcpy(&u, &x, 4);
    return u ^ ((u >> 31) ? 0xffffffffu : 0x80000000u);
}

static float from_order_key(uint32_t u) {
    u ^= (u >> 31) ? 0x80000000u : 0xffffffffu;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

int pl_sort_reserve(pl_sort_space *s, size_t n) {
    if (n <= s->cap) return PL_OK;
    size_t cap = n + n / 2;
    if (grow((void **)&s->keys, cap, 8) || grow((void **)&s->other, cap, 8)) return PL_ENOMEM;
    s->cap = cap;
    return PL_OK;
}

static void insertion_sort(uint64_t *keys, size_t n) {
    for (size_t i = 1; i < n; i++) {
        uint64_t v = keys[i];
        size_t j = i;
        for (; j > 0 && keys[j - 1] > v; j--) keys[j] = keys[j - 1];
        keys[j] = v;
    }
}

/* Sorts s->keys (n,) upwards. low_half_ascending: the low 32 bits already ascend, so a stable sort by the high ones
 * is enough. A digit that all keys share costs no pass. */
int pl_sort_keys(pl_sort_space *s, size_t n, bool low_half_ascending) {
    if (n <= INSERTION_MAX) {
        insertion_sort(s->keys, n);
        return PL_OK;
    }
    for (int shift = low_half_ascending ? 32 : 0; shift < 64; shift += 8) {
        size_t start[RADIX] = {0};
        for (size_t i = 0; i < n; i++) start[(s->keys[i] >> shift) & (RADIX - 1)]++;
        if (start[(s->keys[0] >> shift) & (RADIX - 1)] == n) continue;
        size_t sum = 0;
        for (int d = 0; d < RADIX; d++) {
            size_t count = start[d];
            start[d] = sum;
            sum += count;
        }
        for (size_t i = 0; i < n; i++) s->other[start[(s->keys[i] >> shift) & (RADIX - 1)]++] = s->keys[i];
        uint64_t *swap = s->keys;
        s->keys = s->other;
        s->other = swap;
    }
    return PL_OK;
}

/* Best first; equal logits by id. */
int pl_sort_list(pl_candidates *c) {
    pl_list *l = &c->list;
    if (l->sorted) return PL_OK;
    int rc = pl_sort_reserve(&c->sort, (size_t)l->n);
    if (rc) return rc;
    bool ascending = true;
    for (int32_t i = 0; i < l->n; i++) {
        c->sort.keys[i] = (uint64_t)~pl_order_key(l->logit[i]) << 32 | (uint32_t)l->id[i];
        ascending &= i == 0 || l->id[i] > l->id[i - 1];
    }
    rc = pl_sort_keys(&c->sort, (size_t)l->n, ascending);
    for (int32_t i = 0; i < l->n; i++) {
        l->id[i] = (int32_t)(uint32_t)c->sort.keys[i];
        l->logit[i] = from_order_key(~(uint32_t)(c->sort.keys[i] >> 32));
    }
    l->sorted = true;
    return rc;
}

/* e^x for x <= 0, at most 2 ulp off, 0 below -87. Ours, so that a seed gives the same tokens with every libm, and in
 * a form that compilers vectorise. Cody-Waite reduction and a minimax polynomial (as in Cephes' expf). */
static inline float exp_nonpositive(float x) {
    const float round_magic = 12582912.0f; /* 1.5 * 2^23: adding it leaves the nearest integer in the low bits */
    float shifted = x * 1.44269504f + round_magic;
    float k = shifted - round_magic;
    float r = (x - k * 0.693359375f) - k * -2.12194440e-4f;
    float poly = 1.9875691500e-4f;
    poly = poly * r + 1.3981999507e-3f;
    poly = poly * r + 8.3334519073e-3f;
    poly = poly * r + 4.1665795894e-2f;
    poly = poly * r + 1.6666665459e-1f;
    poly = poly * r + 5.0000001201e-1f;
    poly = poly * r * r + r + 1.0f;
    int32_t in_range, bits;
    memcpy(&in_range, &x, 4);
    in_range = -((in_range & 0x7fffffff) <= 0x42ae0000); /* |x| <= 87; a mask, since a branch would not vectorise */
    memcpy(&bits, &shifted, 4);
    bits = (int32_t)(((uint32_t)bits << 23) + 0x3f800000u);
    float scale;
    memcpy(&scale, &bits, 4);
    float e = poly * scale;
    memcpy(&bits, &e, 4);
    bits &= in_range;
    memcpy(&e, &bits, 4);
    return e;
}

static void exp_row(const float *x, int32_t n, float max, float *out) {
    for (int32_t i = 0; i < n; i++) out[i] = exp_nonpositive(x[i] - max);
}

static double sum_row(const float *p, int32_t n) {
    double lane[8] = {0};
    int32_t i = 0;
    for (; i + 8 <= n; i += 8)
        for (int j = 0; j < 8; j++) lane[j] += (double)p[i + j];
    for (; i < n; i++) lane[i % 8] += (double)p[i];
    return ((lane[0] + lane[4]) + (lane[2] + lane[6])) + ((lane[1] + lane[5]) + (lane[3] + lane[7]));
}

/* The sum over i of e^(x[i] - max), max being the maximum of x. */
double pl_row_exp_sum(const float *x, int32_t n, float max) {
    float p[EXP_BLOCK];
    double sum = 0;
    for (int32_t i = 0; i < n; i += EXP_BLOCK) {
        int32_t m = n - i < EXP_BLOCK ? n - i : EXP_BLOCK;
        exp_row(x + i, m, max, p);
        sum += sum_row(p, m);
    }
    return sum;
}

/* The largest logit of a list that is not empty. */
float pl_list_max(const pl_list *l) {
    int32_t bad = 0;
    return l->sorted ? l->logit[0] : block_max(l->logit, l->n, &bad);
}

/* Fills p with e^(logit - max), not normalised, for a list that is not empty -> their sum. */
double pl_list_softmax(pl_list *l) {
    exp_row(l->logit, l->n, pl_list_max(l), l->p);
    return sum_row(l->p, l->n);
}
