/* Panels of 16 rows (layout: panel.h). Plain C: every tier reads the same panels. */
#include "types/panel.h"
#include "types/types.h"
#include <string.h>

const float pl_q8_factor[PL_Q8_STEPS] = {32.0f / PL_Q8_WHOLE, 24.0f / PL_Q8_WHOLE, 18.0f / PL_Q8_WHOLE, 14.0f / PL_Q8_WHOLE,
                                         11.0f / PL_Q8_WHOLE, 8.0f / PL_Q8_WHOLE,  6.0f / PL_Q8_WHOLE,  5.0f / PL_Q8_WHOLE};
const int16_t pl_q8_whole[PL_Q8_STEPS][2] = {{32, 32}, {24, 24}, {18, 18}, {14, 14}, {11, 11}, {8, 8}, {6, 6}, {5, 5}};

int64_t pl_panel_block_bytes(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? info->panel_bytes : 0;
}

int64_t pl_panel_block_k(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? info->block_elements : 0;
}

int pl_panel_is_float(int type)
{
    const pl_type_info *info = pl_type_find(type & ~PL_INT16);
    return info && (info->is_float || (type & PL_INT16));
}

void pl_pack_panel(int type, const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *dst)
{
    if (type & PL_INT16) {
        memset(dst, 0, (size_t)(cols / 32 * PL_INT16_BLOCK));
        pl_pack_int16(type & ~PL_INT16, src, row_bytes, n_rows, cols, dst);
        return;
    }
    const pl_type_info *info = pl_type_find(type);
    int64_t n_blocks = cols / info->block_elements;
    info->pack(src, row_bytes, n_rows, n_blocks, dst);
}
