#ifndef PL_TYPES_H
#define PL_TYPES_H
/* What is fixed for a tensor type, made from the rows of types.def. */
#include <stdint.h>

enum pl_type {
#define PL_FLOAT_TYPE(NAME, name, number, bits) PL_TYPE_##NAME = number,
#define PL_QUANTIZED_TYPE(NAME, name, number, ...) PL_TYPE_##NAME = number,
#include "types/types.def"
};

/* Decodes 32 elements, sub-block `sub` of one block, to the form of pl_decode32 (api/types.h). q: (32,), scale and min: (2,),
 * for elements 0–15 and 16–31. */
typedef int pl_decode_fn(const void *block, int sub, int8_t *q, float *scale, float *min);
/* n elements of a float type -> float32, the same bits for NaN too. src may be unaligned. */
typedef void pl_to_float_fn(const uint8_t *src, float *dst, int64_t n);
/* Puts n_rows rows of n_blocks blocks, row r from src + r * row_bytes on, into a panel (panel.h); the other rows are zero. */
typedef void pl_pack_fn(const uint8_t *src, int64_t row_bytes, int n_rows, int64_t n_blocks, uint8_t *panel);
/* One block as it lies in a file, from what the search found (quantize.h). */
struct pl_quantized;
typedef void pl_write_fn(const struct pl_quantized *found, uint8_t *block);

typedef struct {
    const char *name;       /* as GGUF tools write it: "Q4_K" */
    int16_t block_elements; /* 1, 32 or 256 */
    int16_t block_bytes;
    int16_t panel_bytes; /* of a block of 16 rows in panels */
    uint8_t is_float;    /* F32, F16, BF16: computed in float32 from [k][16] panels */
    uint8_t group;       /* elements that share a scale, as pl_decode32 reports it (16 or 32; 0: no scale) */
    uint8_t has_min;
    uint8_t needs_importance; /* to be quantized */
    pl_decode_fn *decode;     /* NULL: a float type, which has to_float */
    pl_to_float_fn *to_float;
    pl_pack_fn *pack;
    pl_write_fn *write; /* NULL: kernels write its blocks themselves */
} pl_type_info;

/* The entry of a type that we compute with, NULL for any other number. */
const pl_type_info *pl_type_find(int type);

#endif
