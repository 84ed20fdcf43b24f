/* Pages of the KV cache, allocated when used. Who shares which page, and that only one thread at a time asks for pages, is the
 * Python side's business.
 *
 * Pages come from slabs of at least SLAB bytes, which the system can back with huge memory pages: a head's tiles lie a KV page
 * apart, so that with memory pages of 4 KB every tile is a miss of the TLB. */
#include "exec/pages.h"
#include "api.h"
#include <assert.h>
#include "platform/os.h"
#include <stdlib.h>
#include <string.h>

#define SLAB ((int64_t)8 << 20)
#define SLAB_PAGES 32 /* at most: bits of pl_slab's sets */

struct pl_slab {
    pl_slab *next;
    uint8_t *memory;
    uint32_t used, dirty; /* pages in use; pages that were */
};

static_assert(PL_PAGE_POSITIONS == PL_TILE, "a page is one attention tile of every head");
static_assert(PL_MAX_HEAD_DIM == PL_HEAD_DIM_LIMIT, "what callers may ask for is what kernels have room for");

pl_cache *pl_cache_new(int n_layers, int kv_heads, int k_dim, int v_dim, int type_k, int type_v)
{
    if (n_layers < 1 || kv_heads < 1 || k_dim < 2 || k_dim % 2 || k_dim > PL_MAX_HEAD_DIM || v_dim < 1 ||
        v_dim > PL_MAX_HEAD_DIM || pl_kv_row_bytes(type_k, k_dim) < 0 || pl_kv_row_bytes(type_v, v_dim) < 0)
        return NULL;
    pl_cache *c = malloc(sizeof *c);
    if (!c)
        return NULL;
    *c = (pl_cache){.n_layers = n_layers, .kv_heads = kv_heads};
    pl_kv_tile_init(&c->k, type_k, k_dim);
    pl_kv_tile_init(&c->v, type_v, v_dim);
    c->page_bytes = (int64_t)n_layers * kv_heads * (c->k.bytes + c->v.bytes);
    /* An odd number of tiles: a head's tiles would else lie a power of two apart and share a few sets of every cache. */
    c->slot_bytes = ((int64_t)n_layers * kv_heads | 1) * (c->k.bytes + c->v.bytes);
    int64_t pages = (SLAB + c->slot_bytes - 1) / c->slot_bytes;
    c->slab_pages = (int)(pages < SLAB_PAGES ? pages : SLAB_PAGES);
    return c;
}

static void release(const pl_cache *c, pl_slab *slab)
{
    pl_release(slab->memory, (size_t)(c->slab_pages * c->slot_bytes));
    free(slab);
}

void pl_cache_free(pl_cache *c)
{
    if (c && c->rounding)
        pl_release(c->rounding, (size_t)pl_cache_rounding_bytes(c));
    if (c && c->shifts)
        pl_release(c->shifts, (size_t)pl_cache_shift_bytes(c));
    if (c)
        c->rounding = c->shifts = NULL;
    if (c && c->slabs)
        c->closed = 1;
    else
        free(c);
}
void pl_cache_spread(pl_cache *c, const uint64_t *nodes)
{
    c->spread = 1;
    memcpy(c->nodes, nodes, sizeof c->nodes);
}

int64_t pl_cache_page_bytes(const pl_cache *c) { return c->page_bytes; }

static pl_slab *slab_with_room(pl_cache *c)
{
    const uint32_t all = UINT32_MAX >> (SLAB_PAGES - c->slab_pages);
    for (pl_slab *slab = c->slabs; slab; slab = slab->next)
        if (slab->used != all)
            return slab;
    pl_slab *slab = calloc(1, sizeof *slab);
    if (!slab)
        return NULL;
    slab->memory = pl_alloc((size_t)(c->slab_pages * c->slot_bytes), 1);
    if (!slab->memory) {
        free(slab);
        return NULL;
    }
    if (c->spread)
        pl_memory_spread(slab->memory, (size_t)(c->slab_pages * c->slot_bytes), c->nodes);
    slab->next = c->slabs;
    return c->slabs = slab;
}

uintptr_t pl_page_new(pl_cache *c)
{
    pl_slab *slab = slab_with_room(c);
    if (!slab)
        return 0;
    int i = __builtin_ctz(~slab->used);
    uint8_t *page = slab->memory + i * c->slot_bytes;
    if (slab->dirty >> i & 1)
        memset(page, 0, (size_t)c->page_bytes);
    slab->used |= 1u << i;
    slab->dirty |= 1u << i;
    return (uintptr_t)page;
}

void pl_page_free(pl_cache *c, uintptr_t page)
{
    for (pl_slab **at = &c->slabs; *at; at = &(*at)->next) {
        pl_slab *slab = *at;
        uintptr_t offset = page - (uintptr_t)slab->memory;
        if (offset >= (uintptr_t)(c->slab_pages * c->slot_bytes))
            continue;
        slab->used &= ~(1u << offset / (uintptr_t)c->slot_bytes);
        if (slab->used == 0) {
            *at = slab->next;
            release(c, slab);
        }
        if (c->closed && !c->slabs)
            free(c);
        return;
    }
}
