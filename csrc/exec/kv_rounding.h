/* What a head's keys and values are less, and how keys are rounded, in a 4-bit cache (kv_rounding.c). */
#ifndef PL_KV_ROUNDING_H
#define PL_KV_ROUNDING_H
#include "exec/pages.h"

/* All NULL: nothing is known, keys are kept as they are and rounded to the nearest. */
typedef struct {
    const float *stretch; /* (k_dim): what keys are multiplied by before they are turned */
    const float *shrink;  /* (k_dim): 1 / stretch, for queries */
    const float *mean;    /* (k_dim): taken off each key after it is turned */
    const float *factors; /* (k_dim, PL_KEY_STRIDE(k_dim)): for the kernel store_keys */
} pl_key_rounding;

pl_key_rounding pl_key_rounding_of(const struct pl_cache *c, int layer, int head);
/* (v_dim): what is taken off each value after it is turned, and so off what attention sums of them; NULL: nothing. */
const float *pl_value_shift_of(const struct pl_cache *c, int layer, int head);

#endif
