/* The sampler's sorting: candidates by logit, or keys of 64 bits. */

#include <stdlib.h>
#include <string.h>

#include "sampling/sample.h"

/* A radix sort takes fewer passes with wide digits, whose tables pay only for many keys. */
enum { INSERTION_MAX = 96, NARROW_DIGIT = 8, WIDE_DIGIT = 11, WIDE_FROM = 2048 };

/* Unsigned integers in the order of the floats, which are not NaN; -0 and +0 become equal. */
uint32_t pl_order_key(float x)
{
    x += 0.0f;
    uint32_t u;
    memcpy(&u, &x, 4);
    return u ^ ((u >> 31) ? 0xffffffffu : 0x80000000u);
}

static float from_order_key(uint32_t u)
{
    u ^= (u >> 31) ? 0x80000000u : 0xffffffffu;
    float x;
    memcpy(&x, &u, 4);
    return x;
}

int pl_grow(void **p, size_t n, size_t size)
{
    void *q = realloc(*p, n * size);
    if (!q)
        return PL_ENOMEM;
    *p = q;
    return PL_OK;
}

int pl_sort_reserve(pl_sort_space *s, size_t n)
{
    if (n <= s->cap)
        return PL_OK;
    size_t cap = n + n / 2;
    if (pl_grow((void **)&s->keys, cap, 8) || pl_grow((void **)&s->other, cap, 8))
        return PL_ENOMEM;
    s->cap = cap;
    return PL_OK;
}

static void insertion_sort(uint64_t *keys, size_t n)
{
    for (size_t i = 1; i < n; i++) {
        uint64_t v = keys[i];
        size_t j = i;
        for (; j > 0 && keys[j - 1] > v; j--)
            keys[j] = keys[j - 1];
        keys[j] = v;
    }
}

/* One pass of a radix sort, from keys to other: stable, by the digit of `bits` bits at `shift`. False: all have the same. */
static bool radix_pass(const uint64_t *keys, uint64_t *other, size_t n, int shift, int bits)
{
    uint32_t start[1 << WIDE_DIGIT];
    const size_t digits = (size_t)1 << bits, mask = digits - 1;
    memset(start, 0, digits * sizeof *start);
    for (size_t i = 0; i < n; i++)
        start[keys[i] >> shift & mask]++;
    if (start[keys[0] >> shift & mask] == n)
        return false;
    uint32_t sum = 0;
    for (size_t d = 0; d < digits; d++) {
        uint32_t count = start[d];
        start[d] = sum;
        sum += count;
    }
    for (size_t i = 0; i < n; i++)
        other[start[keys[i] >> shift & mask]++] = keys[i];
    return true;
}

/* Sorts s->keys (n,) upwards. low_half_ascending: the low 32 bits already ascend, so a stable sort by the high ones
 * is enough. */
void pl_sort_keys(pl_sort_space *s, size_t n, bool low_half_ascending)
{
    if (n <= INSERTION_MAX) {
        insertion_sort(s->keys, n);
        return;
    }
    const int bits = n < WIDE_FROM ? NARROW_DIGIT : WIDE_DIGIT;
    for (int shift = low_half_ascending ? 32 : 0; shift < 64; shift += bits) {
        if (!radix_pass(s->keys, s->other, n, shift, bits))
            continue;
        uint64_t *swap = s->keys;
        s->keys = s->other;
        s->other = swap;
    }
}

/* Best first; equal logits by id. */
int pl_sort_list(pl_candidates *c)
{
    pl_list *l = &c->list;
    if (l->sorted)
        return PL_OK;
    int rc = pl_sort_reserve(&c->sort, (size_t)l->n);
    if (rc)
        return rc;
    bool ascending = true;
    for (int32_t i = 0; i < l->n; i++) {
        c->sort.keys[i] = (uint64_t)~pl_order_key(l->logit[i]) << 32 | (uint32_t)l->id[i];
        ascending &= i == 0 || l->id[i] > l->id[i - 1];
    }
    pl_sort_keys(&c->sort, (size_t)l->n, ascending);
    for (int32_t i = 0; i < l->n; i++) {
        l->id[i] = (int32_t)(uint32_t)c->sort.keys[i];
        l->logit[i] = from_order_key(~(uint32_t)(c->sort.keys[i] >> 32));
    }
    l->sorted = true;
    return PL_OK;
}
