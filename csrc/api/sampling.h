#ifndef PL_API_SAMPLING_H
#define PL_API_SAMPLING_H
#include "api/cpu.h"

/* ---- Sampling (sample.c) ---- */
/* A sampler is a chain of steps over a row of logits, with the history and the random numbers of one sequence. It is
 * not thread-safe: one per sequence. A row with NaN or +inf is refused, one without a finite logit too; a logit of
 * -inf is never a candidate. Equal logits are ordered by token id. */
#define PL_SAMPLE_ENAN -32   /* a logit is NaN or +inf */
#define PL_SAMPLE_EEMPTY -33 /* no logit is above -inf */

#define PL_STEP_PENALTIES 0
#define PL_STEP_DRY 1
#define PL_STEP_TOP_N_SIGMA 2
#define PL_STEP_TOP_K 3
#define PL_STEP_TYPICAL_P 4
#define PL_STEP_TOP_P 5
#define PL_STEP_MIN_P 6
#define PL_STEP_XTC 7
#define PL_STEP_TEMPERATURE 8
#define PL_STEP_ADAPTIVE_P 9
#define PL_MAX_STEPS 32

typedef struct pl_sampler pl_sampler;

typedef struct {
    int32_t n_vocab;  /* logits of a row */
    int32_t n_tokens; /* ids that exist, 1 to n_vocab: the logits from there on are padding, which is never looked at */
    int32_t n_steps;
    int32_t steps[PL_MAX_STEPS]; /* PL_STEP_…, in the order they run */
    int32_t top_k;               /* <= 0: off */
    int32_t min_keep;
    int32_t mirostat;           /* 0, 1, 2; 1 and 2 replace the chain */
    int32_t penalty_last_n;     /* tokens, 0: off */
    int32_t dry_allowed_length; /* tokens */
    int32_t dry_last_n;         /* tokens, 0: off */
    int32_t history_len;        /* tokens to remember at least */
    int32_t n_bias;
    int32_t n_breakers;
    double top_p, min_p, typical_p, top_n_sigma;
    double xtc_probability, xtc_threshold;
    double temperature, dynatemp_range, dynatemp_exponent;
    double repeat_penalty, presence_penalty, frequency_penalty;
    double dry_multiplier, dry_base;
    double mirostat_tau, mirostat_eta;
    double adaptive_target, adaptive_decay;
    const int32_t *bias_ids;       /* (n_bias,) */
    const float *bias;             /* (n_bias,) */
    const int32_t *breaker_lens;   /* (n_breakers,) tokens of each DRY sequence breaker, at least 1 */
    const int32_t *breaker_tokens; /* their tokens, one after the other */
} pl_sampler_params;

typedef struct {
    uint64_t rng[4];
    double mu;                  /* mirostat: the largest surprise allowed, in bits */
    double ema_sum, ema_weight; /* adaptive-p */
    double pending_p;           /* adaptive-p: probability of pending_token before the transform */
    int32_t pending_token;      /* -1: none */
} pl_sampler_state;

/* Copies all that `params` points to. NULL: out of memory, or parameters out of range. */
pl_sampler *pl_sampler_new(const pl_sampler_params *params, uint64_t seed);
void pl_sampler_free(pl_sampler *s);
/* As new: no history, the random numbers from `seed`. */
void pl_sampler_reset(pl_sampler *s, uint64_t seed);
/* -> token id, or an error. logits: (n_vocab,), not changed. Does not accept the token. */
int pl_sample(pl_sampler *s, const float *logits, int32_t n_vocab);
/* Samples n_rows rows on the threads of the pool (NULL: on this one). Row i: samplers[i] and logits[i], of as many logits as
 * that sampler's n_vocab -> tokens[i], what pl_sample would return for it alone: a token or its own error. masks: NULL, or
 * for each row NULL or the tokens that are allowed, bit id % 32 of word id / 32; the others count as -inf. A sampler that
 * stands in two rows is refused in the second one (PL_EINVAL). */
int pl_sample_rows(pl_pool *pool, pl_sampler *const *samplers, const float *const *logits, const uint32_t *const *masks,
                   int32_t n_rows, int32_t *tokens);
/* The token ids become history (a prompt's too). */
int pl_sampler_accept(pl_sampler *s, const int32_t *tokens, int32_t n);
/* What pl_sample would draw from, best first -> their number. ids, out_logits, probs: (n_tokens,). Changes no state. */
int pl_sampler_candidates(pl_sampler *s, const float *logits, int32_t n_vocab, int32_t *ids, float *out_logits, float *probs);
/* The remembered history, oldest first -> tokens written to out (cap,). */
int pl_sampler_history(const pl_sampler *s, int32_t *out, int32_t cap);
void pl_sampler_get_state(const pl_sampler *s, pl_sampler_state *out);
void pl_sampler_set_state(pl_sampler *s, const pl_sampler_state *state);
/* Log-probabilities of unprocessed logits (n_tokens,): token's own and the n best -> number of best written to ids,
 * logprobs (n,). */
int pl_top_logprobs(const float *logits, int32_t n_tokens, int32_t token, int32_t n, int32_t *ids, float *logprobs,
                    float *token_logprob);
/* The same of n_rows rows on the threads of the pool (NULL: on this one): tokens, n, token_logprobs and found (n_rows,); ids
 * and logprobs (n_rows, stride), stride at least every n. found[i]: what pl_top_logprobs would return for row i alone. */
int pl_top_logprobs_rows(pl_pool *pool, const float *const *logits, int32_t n_rows, int32_t n_tokens, const int32_t *tokens,
                         const int32_t *n, int32_t stride, int32_t *ids, float *logprobs, float *token_logprobs, int32_t *found);

/* ---- Distributions (divergence.c) ---- */

/* Of each row of `logits` (n_rows, stride), its first n_vocab: the logarithm of the sum of their exponentials, and the place
 * of the largest. Sums have an order fixed by the row. PL_SAMPLE_ENAN: a logit is NaN or infinite. */
int pl_log_sums(pl_pool *pool, const float *logits, int64_t stride, int32_t n_vocab, int32_t n_rows, double *log_sums,
                int32_t *tops);
/* Kullback-Leibler divergences, sum of p ln(p / q) in nats, of the rows q of `logits` from the rows p of `base`, given the
 * log-sums of both: divergences (n_rows,), never below 0, and exact to about 1e-6 of their value. */
int pl_divergences(pl_pool *pool, const float *base, int64_t base_stride, const double *base_sums, const float *logits,
                   int64_t stride, const double *sums, int32_t n_vocab, int32_t n_rows, double *divergences);

#endif
