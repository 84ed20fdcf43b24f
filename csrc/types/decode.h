#ifndef PL_DECODE_H
#define PL_DECODE_H
/* Between dequantize.c, dequantize_iq.c and codebook.c; see pl_decode32 in api.h for the form that decoders give. */
#include <stddef.h>
#include <stdint.h>

/* Decode 32 elements: sub-block `sub` of one block. q: (32,), scale and min: (2,), for elements 0–15 and 16–31. */
typedef int (*pl_decoder)(const void *block, int sub, int8_t *q, float *scale, float *min);

int pl_decode_iq1_s(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq1_m(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq2_xxs(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq2_xs(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq2_s(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq3_xxs(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq3_s(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq4_nl(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_iq4_xs(const void *block, int sub, int8_t *q, float *scale, float *min);
int pl_decode_mxfp4(const void *block, int sub, int8_t *q, float *scale, float *min);

/* The codebook of an IQ type, entry by entry (8 values each; 4 for IQ3_*), or NULL while it has not been set. */
const int8_t *pl_codebook_values(int type);

static inline void pl_decode_scales(float *scale, float *min, float low, float high) {
    scale[0] = low;
    scale[1] = high;
    min[0] = min[1] = 0.0f;
}

#endif
