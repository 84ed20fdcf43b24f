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
    int32_t n_vocab;
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
    double mu;                   /* mirostat: the largest surprise allowed, in bits */
    double ema_sum, ema_weight;  /* adaptive-p */
    double pending_p;            /* adaptive-p: probability of pending_token before the transform */
    int32_t pending_token;       /* -1: none */
} pl_sampler_state;

/* Copies all that `params` points to. NULL: out of memory, or parameters out of range. */
pl_sampler *pl_sampler_new(const pl_sampler_params *params, uint64_t seed);
void pl_sampler_free(pl_sampler *s);
/* As new: no history, the random numbers from `seed`. */
void pl_sampler_reset(pl_sampler *s, uint64_t seed);
/* -> token id, or an error. logits: (n_vocab,), not changed. Does not accept the token. */
int pl_sample(pl_sampler *s, const float *logits, int32_t n_vocab);
/* The token ids become history (a prompt's too). */
int pl_sampler_accept(pl_sampler *s, const int32_t *tokens, int32_t n);
/* What pl_sample would draw from, best first -> their number. ids, out_logits, probs: (n_vocab,). Changes no state. */
int pl_sampler_candidates(pl_sampler *s, const float *logits, int32_t n_vocab, int32_t *ids, float *out_logits,
                          float *probs);
/* The remembered history, oldest first -> tokens written to out (cap,). */
int pl_sampler_history(const pl_sampler *s, int32_t *out, int32_t cap);
void pl_sampler_get_state(const pl_sampler *s, pl_sampler_state *out);
void pl_sampler_set_state(pl_sampler *s, const pl_sampler_state *state);
/* Log-probabilities of the unprocessed logits: token's own and the n best -> number of best written to ids, logprobs
 * (n,). */
int pl_top_logprobs(const float *logits, int32_t n_vocab, int32_t token, int32_t n, int32_t *ids, float *logprobs,
                    float *token_logprob);

/* ---- CPU and threads (cpu.c, threads.c) ---- */

/* ---- Model, plan, cache (plan.c …) ---- */

#endif
