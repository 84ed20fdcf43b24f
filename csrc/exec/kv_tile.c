/* Sizes of KV tiles (layout: kernels.h, kernels/kv_store.inc). */
#include "api.h"
#include "kernels/kernels.h"
#include "types/types.h"

typedef struct {
    int type, bits, scaled;
} kv_type;

static const kv_type kv_types[] = {
#define PL_KV_TYPE(NAME, name, bits, scaled) {PL_TYPE_##NAME, bits, scaled},
#include "exec/kv_types.def"
};

static const kv_type *find(int type)
{
    for (size_t i = 0; i < sizeof kv_types / sizeof kv_types[0]; i++)
        if (kv_types[i].type == type)
            return &kv_types[i];
    return NULL;
}

/* Elements that a head takes in a tile. */
static int64_t padded(const kv_type *kind, int head_dim)
{
    int64_t unit = kind->scaled ? 32 : 16;
    return (head_dim + unit - 1) / unit * unit;
}

int64_t pl_kv_row_bytes(int type, int head_dim)
{
    const kv_type *kind = find(type);
    if (!kind || head_dim < 1)
        return PL_EINVAL;
    int64_t n = padded(kind, head_dim);
    return n * kind->bits / 8 + (kind->scaled ? n / 32 * 2 : 0);
}

void pl_kv_tile_init(pl_kv_tile *tile, int type, int head_dim)
{
    const kv_type *kind = find(type);
    *tile = (pl_kv_tile){.type = type, .head_dim = head_dim};
    if (!kind)
        return;
    if (kind->scaled)
        tile->scales = padded(kind, head_dim) * kind->bits / 8 * PL_TILE;
    if (kind->bits == 4)
        tile->rotation = head_dim & -head_dim; /* the largest power of 2 in it */
    tile->bytes = (pl_kv_row_bytes(type, head_dim) * PL_TILE + 63) / 64 * 64;
}
