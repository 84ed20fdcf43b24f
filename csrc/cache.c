/* Pages of the KV cache: plain memory, allocated when used. Who shares which page is the Python side's business. */
#include "cache.h"
#include "api.h"
#include "blocks.h"
#include "os.h"
#include <stdlib.h>

static_assert(PL_PAGE_POSITIONS == PL_TILE, "a page is one attention tile of every head");

static int kv_type_known(int type)
{
    return type == PL_TYPE_F32 || type == PL_TYPE_F16 || type == PL_TYPE_BF16 || type == PL_TYPE_Q8_0 || type == PL_TYPE_Q4_0;
}

pl_cache *pl_cache_new(int n_layers, int kv_heads, int k_dim, int v_dim, int type_k, int type_v)
{
    if (n_layers < 1 || kv_heads < 1 || k_dim < 2 || k_dim % 2 || k_dim > PL_MAX_HEAD_DIM || v_dim < 1 || v_dim > PL_MAX_HEAD_DIM ||
        !kv_type_known(type_k) || !kv_type_known(type_v))
        return NULL;
    pl_cache *c = malloc(sizeof *c);
    if (!c)
        return NULL;
    *c = (pl_cache){.n_layers = n_layers, .kv_heads = kv_heads};
    pl_kv_tile_init(&c->k, type_k, k_dim);
    pl_kv_tile_init(&c->v, type_v, v_dim);
    c->page_bytes = (int64_t)n_layers * kv_heads * (c->k.bytes + c->v.bytes);
    return c;
}

void pl_cache_free(pl_cache *c) { free(c); }
int64_t pl_cache_page_bytes(const pl_cache *c) { return c->page_bytes; }
uintptr_t pl_page_new(const pl_cache *c) { return (uintptr_t)pl_alloc((size_t)c->page_bytes, 1); }
void pl_page_free(const pl_cache *c, uintptr_t page) { pl_release((uint8_t *)page, (size_t)c->page_bytes); }
