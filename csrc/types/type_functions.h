#ifndef PL_TYPE_FUNCTIONS_H
#define PL_TYPE_FUNCTIONS_H
/* The functions of each quantized type, which the table in types.c is made of. They lie with those of similar types:
 * small_types.c, k_types.c, table_types.c, ternary_types.c, codebook_types.c. */
#include "types/panel.h"
#include "types/types.h"

#define PL_QUANTIZED_TYPE(NAME, name, ...) \
    pl_decode_fn pl_decode_##name; \
    pl_pack_fn pl_pack_##name; \
    pl_write_fn pl_write_##name; /* of types whose writer is OWN there is none */
#include "types/types.def"

enum { /* of a block of 16 rows in panels */
#define PL_QUANTIZED_TYPE(NAME, name, number, elements, bytes, group, min, panel, ...) PL_PANEL_BYTES_##NAME = (panel)*PL_ROWS,
#include "types/types.def"
};

/* pl_pack_<name> from put_<name>(const pl_block_<name> *block, int r, uint8_t *panel), which puts row r of one block into its
 * block of a panel. A loop for each type, so that the compiler sees sizes as constants and calls nothing within it. */
#define PL_PACK_PANEL(NAME, name) \
    void pl_pack_##name(const uint8_t *src, int64_t row_bytes, int n_rows, int64_t n_blocks, uint8_t *panel) \
    { \
        for (int64_t b = 0; b < n_blocks; b++, panel += PL_PANEL_BYTES_##NAME) \
            for (int r = 0; r < n_rows; r++) \
                put_##name((const pl_block_##name *)(const void *)(src + r * row_bytes) + b, r, panel); \
    }

#endif
