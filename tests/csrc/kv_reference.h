/* An independent reading of KV tiles (layout: kernels.h), for the checks. */
#ifndef CHECK_KV_REFERENCE_H
#define CHECK_KV_REFERENCE_H
#include "kernels/kernels.h"

enum {
#define PL_KV_TYPE(NAME, ...) KV_INDEX_##NAME,
#include "exec/kv_types.def"
    N_KV_TYPES
};
extern const int kv_types[N_KV_TYPES];

/* Width of a value row, or rows of a key tile: head_dim padded to 16 (float kinds) or 32 (quantized kinds). */
int kv_width(const pl_kv_tile *tile);
/* Element `dim` of the key or value in `slot`, as float. */
float kv_key(const pl_kv_tile *tile, const uint8_t *bytes, int slot, int dim);
float kv_value(const pl_kv_tile *tile, const uint8_t *bytes, int slot, int dim);
/* What storing x (head_dim) must give back, element by element. */
void kv_expected(int type, int head_dim, const float *x, float *out);

#endif
