/* Between quantize.c, which checks and slices, the kernels of each tier, which search, and the types' pl_write_<name>,
 * which write what they found. */
#ifndef PL_QUANTIZE_H
#define PL_QUANTIZE_H
#include <stdint.h>

/* Whole rows of a checked matrix: all finite, importance at least 0, n_cols a multiple of the block. */
typedef struct {
    int type;
    const float *src; /* (n_rows, n_cols) */
    int64_t n_rows, n_cols;
    const float *importance; /* (n_cols,) or NULL */
    uint8_t *dst;            /* (n_rows, n_cols / block elements * block bytes) */
} pl_quantize_job;

/* What a search finds for one block. Codes count from 0, so Q4_0's 0 is -8; scales are as stored, Q6_K's signed. */
typedef struct pl_quantized {
    uint8_t q[256];   /* the block's elements in order */
    int8_t scale[16]; /* per sub-block, of types that have them */
    uint8_t min[16];
    uint16_t d, m; /* binary16; m: the block's minimum (Q4_1, Q5_1) or the scale of the minima (K types) */
    uint8_t e;     /* MXFP4: the exponent */
} pl_quantized;

#endif
