/* What ops cost at least, by the cost that their rows in ops.def name. */
#ifndef PL_OP_COST_H
#define PL_OP_COST_H
#include "exec/op.h"

typedef void pl_cost_of(const struct pl_plan *plan, const pl_op *op, const pl_workload *work, pl_cost *cost);

pl_cost_of cost_lookup;   /* a row of a table for each token */
pl_cost_of cost_elements; /* `amount` operations for each element of `out`, or of the first buffer */
pl_cost_of cost_products; /* each matrix read once, times all rows */
pl_cost_of cost_segments; /* likewise, of the matrices that rows can go to */
pl_cost_of cost_low_rank; /* adapters: as if every sequence used them all */
pl_cost_of cost_keys;     /* attention over pages */
pl_cost_of cost_tokens;   /* attention among the tokens of the batch */
pl_cost_of cost_relative; /* the same with relative positions */

#endif
