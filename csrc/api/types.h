#ifndef PL_API_TYPES_H
#define PL_API_TYPES_H
#include "api/status.h"

/* ---- Tensor types (types.c, dequantize.c, codebook.c) ---- */

/* Types are numbered as in GGUF (types.def). Each returns PL_EINVAL (the name: NULL) for a type that we do not
 * compute with. */
const char *pl_type_name(int type);
int pl_type_block_elements(int type);
int pl_type_block_bytes(int type);
/* Elements that share a scale in pl_decode32's form: 16 or 32; 0 for the plain float types. */
int pl_type_group(int type);
/* 1 if pl_decode32 can report a minimum other than 0. */
int pl_type_has_min(int type);

/* The IQ1, IQ2 and IQ3 types need a codebook, which the caller gives once, before the type is first decoded.
 * pl_codebook_missing: how many values are still to be given (0: nothing to do).
 * pl_set_codebook: all entries in order; PL_EINVAL if there are not exactly that many, if one cannot occur, or if
 * other values were set before. Setting must not run beside itself or beside decoding of that type. */
int pl_codebook_missing(int type);
int pl_set_codebook(int type, const int8_t *values, int n);

/* n elements (whole blocks) to float32, as the `gguf` package computes them, bit for bit. src may be unaligned.
 * PL_EINVAL: unknown type, n no multiple of the block, or the codebook is missing. */
int pl_dequantize(int type, const void *src, float *dst, int64_t n);

/* Elements 32 sub … 32 sub + 31 of one block of a quantized type, as integers:
 * value(i) = scale[i / 16] * q[i] - min[i / 16], i = 0 … 31. q: (32,), scale and min: (2,).
 * PL_EINVAL: not a quantized type, sub outside the block, or the codebook is missing. */
int pl_decode32(int type, const uint8_t *block, int sub, int8_t *q, float *scale, float *min);

/* ---- Quantization (quantize.c) ---- */

#define PL_QUANTIZE_ENAN -48        /* an element of src is NaN or infinite */
#define PL_QUANTIZE_EIMPORTANCE -49 /* importance is missing where the type needs it, negative, NaN or infinite */

/* 1 if pl_quantize can write the type; 2 if it needs importance for that; PL_EINVAL otherwise. */
int pl_quantize_known(int type);

/* src (n_rows, n_cols) of the float type `stored` (F32, F16, BF16) -> dst: n_rows rows of blocks of `type`. importance:
 * (n_cols,) weights of the columns, at least 0, or NULL. Pure: no threads, no state, and the same bytes on every tier;
 * rows do not depend on each other. Values beyond what the type can hold become the largest that it holds. PL_EINVAL: a
 * type that cannot be written (its codebook missing, where it has one) or read, or n_cols no multiple of the block.
 * After an error dst holds nothing of use. */
int pl_quantize(int type, int stored, const void *src, int64_t n_rows, int64_t n_cols, const float *importance, void *dst);

#endif
