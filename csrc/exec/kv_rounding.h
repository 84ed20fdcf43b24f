/* What a head's keys are less, and how they are rounded, in a 4-bit cache (kv_rounding.c). */
#ifndef PL_KV_ROUNDING_H
#define PL_KV_ROUNDING_H
#include "exec/pages.h"

/* Both NULL: nothing is known, keys are kept as they are and rounded to the nearest. */
typedef struct {
    const float *mean;    /* (k_dim): taken off each key after it is turned */
    const float *factors; /* (k_dim, PL_KEY_STRIDE(k_dim)): for the kernel store_keys */
} pl_key_rounding;

pl_key_rounding pl_key_rounding_of(const struct pl_cache *c, int layer, int head);

#endif
