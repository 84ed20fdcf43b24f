#ifndef PL_TYPE_FUNCTIONS_H
#define PL_TYPE_FUNCTIONS_H
/* The functions of each quantized type, which the table in types.c is made of. They lie with those of similar types:
 * small_types.c, k_types.c, table_types.c, ternary_types.c, codebook_types.c. */
#include "types/row_words.h"
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

/* pl_pack_<name> from pack_<name>(const pl_block_<name> *block, int64_t stride, uint8_t *panel), which puts a block of each of 16
 * rows, `stride` bytes apart, into a block of a panel. What follows the name fills in a block whose part of a panel is zeros, for
 * rows that are not there.
 * The next panel's rows are asked for in the order in which they lie in memory (16 short runs at a time are more than a CPU
 * foresees), and so is the next block of the panel where blocks are long, for those are not written from first to last. */
#define PL_PACK_PANEL(NAME, name, ...) \
    void pl_pack_##name(const uint8_t *src, int64_t row_bytes, int n_rows, int64_t n_blocks, uint8_t *panel) \
    { \
        const int64_t bytes = sizeof(pl_block_##name); \
        pl_block_##name rows[PL_ROWS]; \
        for (int r = 0; r < PL_ROWS; r++) \
            rows[r] = (pl_block_##name){__VA_ARGS__}; \
        for (int64_t b = 0; b < n_blocks; b++, panel += PL_PANEL_BYTES_##NAME) { \
            const pl_block_##name *block = (const pl_block_##name *)(const void *)src + b; \
            int64_t stride = row_bytes; \
            pl_prefetch(src + PL_ROWS * (row_bytes + b * bytes), PL_ROWS * bytes); \
            if (bytes > 64) \
                pl_prefetch(panel + PL_PANEL_BYTES_##NAME, PL_PANEL_BYTES_##NAME); \
            if (n_rows < PL_ROWS) { \
                for (int r = 0; r < n_rows; r++) \
                    memcpy(&rows[r], (const uint8_t *)block + r * row_bytes, sizeof rows[r]); \
                block = rows; \
                stride = bytes; \
            } \
            pack_##name(block, stride, panel); \
        } \
    }

#endif
