#ifndef PL_SAMPLE_H
#define PL_SAMPLE_H
#include <stdbool.h>

#include "api.h"
#include "kernels/kernels.h"
#include "platform/threads.h"

/* Inside of the sampler: what the files of this folder share.
 *
 * A row of logits is first DENSE: ids are implicit, -inf means "no candidate". The first step that removes tokens
 * turns it into a LIST of candidates. Everything that must look at the whole vocabulary is in sample_select.c, and in
 * kernels/sampling.inc. */

typedef struct {
    int32_t *id;  /* (n,) */
    float *logit; /* (n,) never -inf */
    float *p;     /* (n,) valid only directly after pl_list_softmax */
    int32_t n, cap;
    bool sorted; /* by logit, high to low; equal logits by id, low to high */
} pl_list;

typedef struct {
    uint64_t *keys, *other; /* (cap,) each; radix sort writes from one to the other */
    size_t cap;
} pl_sort_space;

typedef struct {
    const pl_kernels *kernels;
    const float *row; /* (n,) the logits of tokens that exist, or `work` once a step has changed them */
    float *work;      /* (n,) or NULL: our own copy, allocated when first needed */
    float *block_max; /* (n_blocks,) valid while `scanned` */
    float *heap;      /* (n_blocks,) scratch of the threshold search */
    int32_t n, n_blocks;
    int32_t n_counted; /* candidates as llama.cpp counts them: with those at -inf that it has not cut off */
    float max;
    bool scanned;
    pl_list list;
    bool dense;
    pl_sort_space sort;
} pl_candidates;

typedef struct {
    int32_t token, count;
} pl_token_count;

typedef struct {
    int32_t *ring; /* (cap,) the last accepted tokens */
    int32_t cap, n, head;
    int32_t window;           /* tokens that penalties look back on, 0 = off */
    pl_token_count *distinct; /* (window,) tokens inside the window, in no order */
    int32_t n_distinct;
    int32_t *slot; /* (n_tokens,) index into distinct, -1 = not in the window */
} pl_history;

typedef struct {
    int32_t window;      /* tokens that DRY looks back on, 0 = off */
    int32_t *tokens, *z; /* (window,) newest first; length of the repeat that ends there */
    int32_t *repeat;     /* (n_tokens,) longest repeat that this token would extend; 0 outside a call */
    int32_t *touched;    /* (window,) tokens whose `repeat` is not 0 */
    int32_t n_touched;
    int32_t *first, *next;  /* (n_tokens,), (n_breakers,): breakers that begin with a token, as linked lists */
    int32_t *tail, *offset; /* flattened tails; (n_breakers + 1,) where each begins */
} pl_dry;

struct pl_sampler {
    pl_sampler_params o;
    int32_t *bias_ids;
    float *bias;
    pl_sampler_state st;
    pl_candidates c;
    pl_history history;
    pl_dry dry;
    bool busy; /* in a row of a running pl_sample_rows */
};

/* sample.c: pl_sample with a mask, or NULL */
int pl_sample_masked(pl_sampler *s, const float *logits, const uint32_t *mask);

/* sample_rows.c */
void pl_run_rows(pl_pool *pool, int32_t n_rows, pl_counter *counter, const pl_job *job);

/* sample_select.c */
int pl_candidates_init(pl_candidates *c, int32_t n_tokens);
void pl_candidates_free(pl_candidates *c);
void pl_candidates_set(pl_candidates *c, const float *row);
int pl_make_writable(pl_candidates *c);
int pl_candidates_mask(pl_candidates *c, const uint32_t *mask);
int pl_scan(pl_candidates *c);
int pl_keep_from(pl_candidates *c, double threshold);
int pl_keep_top(pl_candidates *c, int32_t k);
int pl_keep_all(pl_candidates *c);
double pl_row_softmax_sum(const pl_candidates *c);
float pl_list_max(pl_candidates *c);
double pl_list_softmax(pl_candidates *c);

/* sample_sort.c */
int pl_grow(void **p, size_t n, size_t size);
int pl_sort_list(pl_candidates *c);
void pl_sort_keys(pl_sort_space *s, size_t n, bool low_half_ascending);
int pl_sort_reserve(pl_sort_space *s, size_t n);
uint32_t pl_order_key(float x);

/* sample_steps.c: each takes the sampler after the chain so far */
int pl_step_run(pl_sampler *s, int32_t at);
int pl_step_temperature(pl_sampler *s, double temperature);
int pl_step_mirostat1(pl_sampler *s);
int pl_step_mirostat2(pl_sampler *s);
int pl_step_adaptive(pl_sampler *s);
double pl_random(pl_sampler *s);

/* sample_history.c */
int pl_history_init(pl_sampler *s);
void pl_history_free(pl_sampler *s);
void pl_history_clear(pl_history *h);
void pl_history_push(pl_history *h, int32_t token);
int pl_apply_penalties(pl_sampler *s);
int pl_apply_dry(pl_sampler *s);

#endif
