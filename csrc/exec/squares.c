/* Squares of the columns of a product's input, added up over tokens: what an importance matrix is made of. */
#include "exec/plan.h"

#define COLUMNS 64 /* of one work item: whole cache lines of every row */

/* Rows are added in their order, whichever thread has the columns: the sums do not depend on the number of threads. */
int64_t pl_squares_run(pl_plan *plan, const pl_op *op, pl_share *share)
{
    int64_t n = op->outputs ? plan->batch.n_outputs : plan->batch.n_tokens;
    int64_t pieces = n ? (op->width + COLUMNS - 1) / COLUMNS : 0, begin, end;
    while (pl_share_take(share, pieces, 1, 1, &begin, &end)) {
        int64_t column = begin * COLUMNS, width = op->width - column < COLUMNS ? op->width - column : COLUMNS;
        const float *x = plan->buffers[op->src[0]] + column;
        double *sums = op->sums + column;
        for (int64_t i = 0; i < n; i++, x += plan->strides[op->src[0]])
            for (int64_t c = 0; c < width; c++)
                sums[c] += (double)x[c] * (double)x[c];
        pl_share_done(share, end - begin);
    }
    return pieces;
}
