/* Experts that stay in their file, and the memory for some of them.
 *
 * Memory is divided into slots, each room for one expert's matrix in panels. A layer's experts are requested when its router
 * has chosen (pl_expert_request), in the order in which products will use them: those that lie in a slot first. A request is
 * granted a slot in that order, an unused one or that of the matrix whose last use is the longest ago, and readers fill it,
 * many parts of files at a time. Products wait for their matrix (pl_expert_acquire) and give it back (pl_expert_release).
 * So a layer may need any number of experts with a slot or more of each size: the first requests that have not been given back
 * always hold slots. */
#ifndef PL_EXPERT_MEMORY_H
#define PL_EXPERT_MEMORY_H
#include "api.h"

struct pl_stored_matrix;

#define PL_SEGMENT_ITEMS 32 /* of a matrix, at most */

/* Panels of a work item of a product, and a matrix's items. */
static inline int64_t pl_segment_unit(int64_t panels)
{
    return panels > 2 * PL_SEGMENT_ITEMS ? (panels + PL_SEGMENT_ITEMS - 1) / PL_SEGMENT_ITEMS : 2;
}
static inline int64_t pl_segment_items(int64_t panels)
{
    return (panels + pl_segment_unit(panels) - 1) / pl_segment_unit(panels);
}

/* NULL before it was started. */
pl_expert_memory *pl_expert_memory_of(const struct pl_stored_matrix *matrix);
void pl_expert_memory_keep(pl_expert_memory *memory);
/* In place of what was requested before: of each of n_products lists of n_segments matrices, those whose segments have rows.
 * queue: (n_products * n_segments,) receives the segments of each product in the order to work on them, then -1. */
void pl_expert_request(pl_expert_memory *memory, const pl_matrix *const *matrices, int n_products, int n_segments,
                       const int32_t *ends, int32_t *queue);
/* Reads matrices of segments that have rows, as far as readers have nothing else to do; what is not requested next is dropped. With
 * `if_most` nothing is done unless most segments have rows, otherwise nothing unless what is expected mostly comes true. */
void pl_expert_expect(pl_expert_memory *memory, const pl_matrix *const *matrices, int n_products, int n_segments,
                      const int32_t *ends, int if_most);
/* The panels of a matrix that was requested, once they are there; NULL: they could not be read. */
const uint8_t *pl_expert_acquire(struct pl_stored_matrix *matrix);
/* One of the matrix's work items is done. */
void pl_expert_release(struct pl_stored_matrix *matrix);

#endif
