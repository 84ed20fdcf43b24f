#ifndef PL_API_KV_H
#define PL_API_KV_H
#include "api/status.h"

/* ---- KV cache (pages.c, kv_tile.c) ---- */

#define PL_PAGE_POSITIONS 32
#define PL_MAX_HEAD_DIM 1024

/* Bytes that a key or a value of `head_dim` elements takes in the cache; PL_EINVAL: not a type that a cache can have
 * (exec/kv_types.def). */
int64_t pl_kv_row_bytes(int type, int head_dim);

typedef struct pl_cache pl_cache;
/* The shape of a page: PL_PAGE_POSITIONS positions of all layers. type_k, type_v: F32, F16, BF16, Q8_0, Q4_0. */
pl_cache *pl_cache_new(int n_layers, int kv_heads, int k_dim, int v_dim, int type_k, int type_v);
/* Pages may outlive it, as when an interpreter ends and finalizes objects in any order. */
void pl_cache_free(pl_cache *cache);
/* Pages made from now on lie on these memory nodes in turn: 16 words, a bit for each node. */
void pl_cache_spread(pl_cache *cache, const uint64_t *nodes);
int64_t pl_cache_page_bytes(const pl_cache *cache);
typedef struct {
    const float *stretch; /* (k_dim): what keys are multiplied by and queries divided by, before they are turned */
    const float *moment;  /* (k_dim, k_dim), of queries so divided: the mean of q q^T */
    const float *mean;    /* (k_dim), of keys so multiplied */
    const float *first;   /* (k_dim), what a key at position 0 is like, so multiplied; whatever is near it loses least */
} pl_key_statistics;
/* Says how the keys of a head are to be rounded, of a cache with 4-bit keys (kv_rounding.c), before a plan is made for it.
 * PL_EINVAL: not a head of such a cache; PL_EUNSUPPORTED: not finite, or queries all zero: the head is left as it was. */
int pl_cache_shape_keys(pl_cache *cache, int layer, int head, const pl_key_statistics *statistics);
/* Bytes that it takes for all heads; 0: this cache has none. */
int64_t pl_cache_rounding_bytes(const pl_cache *cache);
/* Says what 4-bit values of a head are less, before a plan is made for the cache. mean: (v_dim), near to what most are
 * like; first: (v_dim), what a value at position 0 is like. Returns as above; its bytes. */
int pl_cache_shift_values(pl_cache *cache, int layer, int head, const float *mean, const float *first);
int64_t pl_cache_shift_bytes(const pl_cache *cache);
/* A zeroed page -> its address, 0 when out of memory. */
uintptr_t pl_page_new(pl_cache *cache);
void pl_page_free(pl_cache *cache, uintptr_t page);

#endif
