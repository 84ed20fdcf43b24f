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

/* ---- Tensor types (dequantize.c) ---- */

/* ---- Sampling (sample.c) ---- */

/* ---- CPU and threads (cpu.c, threads.c) ---- */

/* ---- Model, plan, cache (plan.c …) ---- */

#endif
