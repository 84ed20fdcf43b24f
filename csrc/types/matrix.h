/* A weight matrix in panels. */
#ifndef PL_MATRIX_H
#define PL_MATRIX_H
#include <stdatomic.h>
#include <stdint.h>

/* One mapping for all the weights of a model, on huge pages: small matrices would otherwise lie on 4 KB pages, where the
 * hardware's prefetching stops at each page's end. Counted: it goes with its last matrix. */
struct pl_weight_arena {
    _Atomic int owners;
    uint8_t *data;
    int64_t bytes, used;
    struct pl_mapping *guard; /* of a file's pages (panel_file.c); NULL: memory of its own */
};

struct pl_matrix {
    int type;
    int64_t rows, cols, panels; /* panels of 16 rows, the last one filled up with zeros */
    int64_t panel_bytes;
    uint8_t *data;                 /* (panels, panel_bytes) */
    struct pl_weight_arena *arena; /* where data lies; NULL: an allocation of its own */
    struct pl_stored_matrix *stored; /* it stays in its file (exec/expert_memory.h), and data is NULL; else NULL */
};

#endif
