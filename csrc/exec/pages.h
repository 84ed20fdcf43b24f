/* Where keys and values lie in a page: for each layer and KV head the key tile, then the value tile. */
#ifndef PL_PAGES_H
#define PL_PAGES_H
#include "kernels/kernels.h"
#include "platform/os.h"

typedef struct pl_slab pl_slab;

struct pl_cache {
    int n_layers, kv_heads;
    pl_kv_tile k, v;
    int64_t page_bytes, slot_bytes; /* of a page; from one page to the next in a slab */
    int slab_pages, closed;         /* closed: freed with its last page */
    int spread;                     /* over memory nodes */
    uint64_t nodes[PL_NODE_WORDS];
    pl_slab *slabs;                 /* those with a page in use */
    float *rounding;                /* of keys (kv_rounding.c); NULL: none was given */
    float *shifts;                  /* of values (kv_rounding.c); NULL: none was given */
};

static inline int64_t pl_cache_offset(const struct pl_cache *c, int layer, int head)
{
    return ((int64_t)layer * c->kv_heads + head) * (c->k.bytes + c->v.bytes);
}

#endif
