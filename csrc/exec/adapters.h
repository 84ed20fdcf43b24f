/* What adapters (LoRA) add to the rows of products (ops_adapters.c). */
#ifndef PL_ADAPTERS_H
#define PL_ADAPTERS_H
#include "exec/plan.h"

/* Panels [panel0, panel1) of a product, rows [row0, row1), which lie at `out`: its B's in `up` times their columns of
 * `low_rank`. */
typedef struct {
    const pl_matrices *up; /* n_adapters for each product of the op */
    int n_adapters, low_rank, product;
    float *out; /* of row0 and panel0 */
    int64_t stride, panel0, panel1, row0, row1;
} pl_up;

/* Adds them, for the rows whose sequences use the adapters. The batch has scales. */
void pl_run_up(pl_plan *plan, const pl_op *op, const pl_up *up);
/* Whether one of the rows [row, end) uses an adapter that changes a product of the op. */
int pl_rows_use_adapters(const pl_plan *plan, const pl_op *op, const pl_matrices *up, int n_adapters, int64_t row, int64_t end);
/* Why `up` cannot be added to the outputs (3) of an op; NULL when it can. */
const char *pl_check_up(const pl_plan *plan, const pl_matrices *up, int n_adapters, int low_rank, const int32_t *out);

#endif
