/* What the checks of the kernels share: random numbers, guarded buffers, and how a failure is reported. */
#ifndef CHECK_H
#define CHECK_H
#include "api.h"
#include "types/blocks.h"
#include "kernels/kernels.h"
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))
#define MAX_TIERS 8

/* The tiers under test, scalar first; set by main. */
extern const pl_kernels *tiers[MAX_TIERS];
extern int n_tiers;
extern int quick; /* fewer random cases */

uint32_t random_bits(void);
int random_below(int n);
float random_float(void); /* uniform in [-1, 1) */
int pick(const int *values, int n);
void set_seed(uint64_t seed);

/* Names the case that runs, for the messages of `fail`. */
__attribute__((format(printf, 1, 2))) void begin_case(const char *format, ...);
__attribute__((format(printf, 2, 3))) void fail(const pl_kernels *tier, const char *format, ...);
int failures(void);
long cases(void);

/* `bytes` of memory that start `offset` bytes after a 64-byte boundary, filled with 0xff (a NaN in every float type),
 * with a canary before and after it. `guarded_free` fails the case when a canary was touched. */
void *guarded(size_t bytes, size_t offset);
void guarded_free(const pl_kernels *tier, void *data);
int is_poison(const void *data, size_t bytes);

/* Independent rounding to binary16 and bfloat16 (nearest, ties to even), in double arithmetic. */
uint16_t reference_f16(double x);
uint16_t reference_bf16(float x);
/* One activation block with the scale that was chosen for it and its chunk's, straight from the definition. */
void reference_q8(const float *x, float scale, int step, pl_q8 *out);
/* sum_x8 of the second of two blocks. */
void reference_sum_x8(const pl_q8 *pair, int16_t *out);

/* Gathers the residual blocks of m's tokens in groups of `group` -> what m->residual_blocks needs, to be freed by guarded_free. */
uint8_t *gather_residuals(const pl_matmul *m, int group);

void check_matmul(void);
void check_int16(void);
void check_position_softmax(void);
void check_kv(void);
void check_attention(void);
void check_elementwise(void);
void check_distribution(void);
void check_probe(void);
void check_sampling(void);
void check_quantize_weights(void);
void check_quantize_iq(void);
void bench(const pl_kernels *tier);

#endif
