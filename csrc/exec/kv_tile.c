/* Sizes of KV tiles (layout: kernels.h, kernels/kv.inc). */
#include "types/blocks.h"
#include "kernels/kernels.h"

void pl_kv_tile_init(pl_kv_tile *tile, int type, int head_dim)
{
    int64_t dim32 = (head_dim + 31) / 32 * 32, dim16 = (head_dim + 15) / 16 * 16;
    *tile = (pl_kv_tile){.type = type, .head_dim = head_dim};
    switch (type) {
    case PL_TYPE_F32: tile->bytes = dim16 * PL_TILE * 4; break;
    case PL_TYPE_F16:
    case PL_TYPE_BF16: tile->bytes = dim16 * PL_TILE * 2; break;
    case PL_TYPE_Q8_0: tile->scales = dim32 * PL_TILE; break;
    case PL_TYPE_Q4_0: tile->scales = dim32 * PL_TILE / 2; break;
    }
    if (tile->scales)
        tile->bytes = tile->scales + dim32 / 32 * PL_TILE * 2;
    tile->bytes = (tile->bytes + 63) / 64 * 64;
}
