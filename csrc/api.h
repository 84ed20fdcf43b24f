#ifndef PL_API_H
#define PL_API_H
#include <stddef.h>
#include <stdint.h>

/* The only header that Python sees: cffi reads it as its cdef. Plain C declarations and integer #defines only.
 * Functions return 0 (or a count) when all is well and a negative PL_E… otherwise. */

#define PL_OK 0
#define PL_EINVAL -1
#define PL_ENOMEM -2
#define PL_EINTERRUPTED -3
#define PL_EUNSUPPORTED -4

/* ---- GGUF (gguf_scan.c) ---- */

/* Walks `count` strings from byte `start` of a file of `size` bytes; a string is a length of `width` (4 or 8) bytes,
 * big-endian when `big`, and its bytes. Fills offsets[i] (bytes, from the file's start) and lengths[i] (bytes) where
 * those are not NULL, each `count` long. Returns the byte after the last string; PL_EINVAL when one runs outside. */
int64_t pl_gguf_scan_strings(const uint8_t *data, uint64_t size, uint64_t start, uint64_t count, int32_t width,
                             int32_t big, uint64_t *offsets, uint64_t *lengths);

/* Copies the strings at offsets[i], each followed by `separator`, one after another to `out`.
 * Returns the bytes written; PL_EINVAL when a string is outside `size` or the text outgrows `out_size`. */
int64_t pl_gguf_join_strings(const uint8_t *data, uint64_t size, uint64_t count, const uint64_t *offsets,
                             const uint64_t *lengths, uint8_t separator, uint8_t *out, uint64_t out_size);

/* ---- Tensor types (dequantize.c) ---- */

/* Types are numbered as in GGUF (blocks.h). Each returns PL_EINVAL (the name: NULL) for a type that we do not decode. */
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

/* ---- Sampling (sample.c) ---- */

/* ---- CPU and threads (cpu.c, threads.c) ---- */

/* ---- Model, plan, cache (plan.c …) ---- */

#endif
