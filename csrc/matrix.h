/* A weight matrix in panels. */
#ifndef PL_MATRIX_H
#define PL_MATRIX_H
#include <stdint.h>

struct pl_matrix {
    int type;
    int64_t rows, cols, panels; /* panels of 16 rows, the last one filled up with zeros */
    int64_t panel_bytes;
    uint8_t *data; /* (panels, panel_bytes) */
};

#endif
