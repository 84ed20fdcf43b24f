/* Random weights in file blocks, for the checks and the benchmark. */
#ifndef CHECK_WEIGHTS_H
#define CHECK_WEIGHTS_H
#include <stdint.h>

typedef enum { W_NORMAL, W_ZERO, W_TINY, W_HUGE, W_LOW_CODES, W_HIGH_CODES, W_MIXED, W_MODES } weight_mode;

/* The k-th type that has a panel form, -1 past the end. */
int weight_type(int k);
/* All codebooks, with random entries. */
void set_random_codebooks(void);
/* n elements (whole blocks) of `type` in file form. */
void random_weights(int type, weight_mode mode, uint8_t *out, int64_t n);

#endif
