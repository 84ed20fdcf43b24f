/* Between quantize.c, which checks and slices, and the kernels of each tier, which search and write blocks. */
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

#endif
