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
#define PL_EREAD -5

/* ---- GGUF (gguf_scan.c) ---- */

/* Scans `count` strings from byte `start` of a file of `size` bytes; a string is a length of `width` (4 or 8) bytes,
 * big-endian when `big`, and its bytes. Fills offsets[i] (bytes, from the file's start) and lengths[i] (bytes) where
 * those are not NULL, each `count` long. Returns the byte after the last string; PL_EINVAL when one runs outside. */
int64_t pl_gguf_scan_strings(const uint8_t *data, uint64_t size, uint64_t start, uint64_t count, int32_t width, int32_t big,
                             uint64_t *offsets, uint64_t *lengths);

/* Copies the strings at offsets[i], each followed by `separator`, one after another to `out`.
 * Returns the bytes written; PL_EINVAL when a string is outside `size` or the text outgrows `out_size`. */
int64_t pl_gguf_join_strings(const uint8_t *data, uint64_t size, uint64_t count, const uint64_t *offsets, const uint64_t *lengths,
                             uint8_t separator, uint8_t *out, uint64_t out_size);

/* ---- Images (resize.c) ---- */

/* src (height, width, 3) -> dst (new_height, new_width, 3), bilinear, bit for bit as Pillow up to 12 (width first).
 * PL_EINVAL: a side below 1 or above 2^24. */
int pl_resize_rgb(const uint8_t *src, int32_t height, int32_t width, uint8_t *dst, int32_t new_height, int32_t new_width);

/* ---- Byte-level BPE (text/) ---- */

/* How text is cut into words. */
#define PL_CONTRACTIONS_NONE 0
#define PL_CONTRACTIONS_ASCII 1    /* 's, 't, 're, 've, 'm, 'll, 'd are words */
#define PL_CONTRACTIONS_ANY_CASE 2 /* in any case */
#define PL_CONTRACTIONS_BEHIND 3   /* in any case, as the end of a word */
#define PL_WORD_SPACED 0   /* letters, and a space before them */
#define PL_WORD_PREFIXED 1 /* letters, and any one character before them that is no line end, letter or number */
#define PL_WORD_CASED 2    /* the same, but a word ends where a capital follows a small letter */
#define PL_TAIL_NONE 0
#define PL_TAIL_LINES 1   /* line ends belong to the punctuation before them */
#define PL_TAIL_SLASHES 2 /* slashes too */
typedef struct {
    int32_t contractions, word, tail; /* PL_CONTRACTIONS_…, PL_WORD_…, PL_TAIL_… */
    int32_t digits;                   /* of a number at the most, 0: any number of them */
    int32_t spaced_digits;            /* a number takes the space before it */
    int32_t lines;                    /* spaces end with the last line end among them */
    int32_t digits_end_spaces;        /* all spaces before a digit are one word, else without the last one */
} pl_word_rule;

/* Classes of a character, together. */
#define PL_CHAR_LETTER 1
#define PL_CHAR_NUMBER 2
#define PL_CHAR_SPACE 4
#define PL_CHAR_UPPER 8  /* capitals, and letters and marks without case */
#define PL_CHAR_LOWER 16 /* small letters, and letters and marks without case */

typedef struct pl_words pl_words;
/* classes: (256,) of the characters of block 0; copied. NULL: out of memory. */
pl_words *pl_words_new(const pl_word_rule *rule, const uint8_t *classes);
void pl_words_free(pl_words *words);
/* The classes (256,) of the characters from 256 * block on. */
int pl_words_learn(pl_words *words, int block, const uint8_t *classes);
/* The ends of the words of text (n bytes) from byte `start` on, (n,) at the most -> their number; -1 - block when that block
 * must be learned first. */
int64_t pl_words_split(const pl_words *words, const uint8_t *text, int64_t n, int64_t start, int64_t *ends);

typedef struct pl_bpe pl_bpe;
/* pieces: the vocabulary's spellings in the order of their ids, each followed by a line end; hidden: (n_pieces,)
 * whether plain text never becomes it; merges: "left right", each followed by a line end, the first of equals counts. Copies all.
 * whole_words: a word that is in the vocabulary is taken whole. NULL: out of memory, or too many. */
pl_bpe *pl_bpe_new(const uint8_t *pieces, int64_t piece_bytes, const uint8_t *hidden, int64_t n_pieces, const uint8_t *merges,
                   int64_t merge_bytes, int whole_words);
void pl_bpe_free(pl_bpe *bpe);
/* Words that were merged before, of one model; for one thread at a time. NULL: out of memory. */
typedef struct pl_word_cache pl_word_cache;
pl_word_cache *pl_word_cache_new(void);
void pl_word_cache_free(pl_word_cache *cache);

#define PL_ENEEDS_BLOCK -64 /* a character's block must be learned (pl_words_learn); then go on with the same arguments */
typedef struct {
    int64_t position, n_ids; /* bytes read so far, ids written */
    int32_t *ids;            /* as many as bytes at the most */
    int32_t block;           /* that must be learned */
} pl_encoding;
/* Goes on with the text (n bytes) until its end, PL_ENEEDS_BLOCK or PL_ENOMEM. words NULL: all of it is one word; cache may be
 * NULL. */
int pl_bpe_encode(const pl_bpe *bpe, const pl_words *words, pl_word_cache *cache, const uint8_t *text, int64_t n,
                  pl_encoding *run);

/* ---- Unigram (text/unigram.c) ---- */

typedef struct pl_unigram pl_unigram;
/* Piece i is the bytes [starts[i], starts[i + 1] - 1) of `pieces` (UTF-8; one byte more stands behind each); starts: (n_pieces
 * + 1); scores: (n_pieces,). unknown_score: of a character that no piece has. NULL: out of memory, or no vocabulary. */
pl_unigram *pl_unigram_new(const uint8_t *pieces, const int64_t *starts, const double *scores, int64_t n_pieces,
                           double unknown_score);
void pl_unigram_free(pl_unigram *unigram);
/* The id of a piece, -1: there is none. */
int pl_unigram_find(const pl_unigram *unigram, const uint8_t *text, int64_t n);
/* Cuts `word` (n bytes of UTF-8) into the likeliest pieces -> their number. ids and ends, room for n each: the pieces' ids, -1
 * for a character that no piece has, and the bytes of the word up to their ends. Of paths that are as likely the one whose
 * last piece begins first. */
int64_t pl_unigram_encode(const pl_unigram *unigram, const uint8_t *word, int64_t n, int32_t *ids, int32_t *ends);

/* ---- Tensor types (types.c, dequantize.c, codebook.c) ---- */

/* Types are numbered as in GGUF (types.def). Each returns PL_EINVAL (the name: NULL) for a type that we do not
 * compute with. */
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

/* ---- Quantization (quantize.c) ---- */

#define PL_QUANTIZE_ENAN -48        /* an element of src is NaN or infinite */
#define PL_QUANTIZE_EIMPORTANCE -49 /* importance is missing where the type needs it, negative, NaN or infinite */

/* 1 if pl_quantize can write the type; 2 if it needs importance for that; PL_EINVAL otherwise. */
int pl_quantize_known(int type);

/* src (n_rows, n_cols) of the float type `stored` (F32, F16, BF16) -> dst: n_rows rows of blocks of `type`. importance:
 * (n_cols,) weights of the columns, at least 0, or NULL. Pure: no threads, no state, and the same bytes on every tier;
 * rows do not depend on each other. Values beyond what the type can hold become the largest that it holds. PL_EINVAL: a
 * type that cannot be written (its codebook missing, where it has one) or read, or n_cols no multiple of the block.
 * After an error dst holds nothing of use. */
int pl_quantize(int type, int stored, const void *src, int64_t n_rows, int64_t n_cols, const float *importance, void *dst);

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
typedef struct pl_pool pl_pool;

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

/* ---- Mapped files (mapping.c) ---- */

typedef struct pl_mapping pl_mapping;
/* From now on pages of [start, start + bytes), a mapping of a file, read as zeros when the file has lost them, instead of
 * ending the process by SIGBUS. pl_mapping_free comes before the mapping ends. NULL: out of memory. */
pl_mapping *pl_mapping_guard(const void *start, uint64_t bytes);
void pl_mapping_free(pl_mapping *mapping);
/* Pages that were found lost so far. */
int64_t pl_mapping_lost(const pl_mapping *mapping);

/* ---- CPU and threads (dispatch.c, threads.c) ---- */

#define PL_MAX_THREADS 512

/* Tiers in order of speed, slowest first; NULL past the end. */
const char *pl_isa_name(int index);
int pl_isa_available(int index);
/* Chooses the tier of that name, or the fastest one for NULL, for the whole process -> its index, PL_EINVAL for an
 * unknown name, PL_EUNSUPPORTED for one that this CPU lacks. */
int pl_isa_select(const char *name);

/* Threads by groups of CPUs: `n_threads` of a group keep to its CPUs (a bit each; none: to no CPUs in particular). Nodes are
 * numbered from 0 without gaps, and the groups of a node are neighbours: weights that the pool packs lie in the memory of the
 * node whose threads use them. `speed`: a guess of how fast a core of the group is beside those of others. */
#define PL_MAX_CPUS 8192
typedef struct {
    int32_t n_threads, node;
    double speed;
    uint64_t cpus[128]; /* PL_MAX_CPUS bits */
} pl_cpu_group;
/* A pool of as many threads as the groups have, the caller being one of them. One job at a time. follows_cpus: never more run
 * than there are CPUs that the process may use, now or later: those beyond would only take time from those that have work.
 * NULL: out of memory or threads. In a forked child, which has none of the threads, a pool starts its own when first used. */
pl_pool *pl_pool_new(const pl_cpu_group *groups, int n_groups, int follows_cpus);
int pl_pool_running(const pl_pool *pool); /* the caller included */
void pl_pool_free(pl_pool *pool);

/* ---- Weights (matrix.c) ---- */

typedef struct pl_matrix pl_matrix;
typedef struct pl_weight_arena pl_weight_arena;
/* Room for a model's weights on huge pages; memory is taken when it is filled. NULL: out of memory. */
pl_weight_arena *pl_weight_arena_new(int64_t bytes);
void pl_weight_arena_free(pl_weight_arena *arena);
/* Panels that a file has from byte `offset` on, a multiple of 2 MB: mapped read-only, and shared with all who map them.
 * Bytes that the file loses meanwhile read as zeros and are counted (pages) by pl_weight_arena_lost. NULL: it cannot be mapped. */
pl_weight_arena *pl_weight_arena_map(int file, int64_t offset, int64_t bytes);
int64_t pl_weight_arena_lost(const pl_weight_arena *arena);
/* How many of the blocks [first, end) of PL_SUM_BLOCK bytes have other sums than sums[first …], with all threads of the pool.
 * all 0: of those that are not in memory (a few pages of each are asked for), and so come from the disk now. */
int64_t pl_weight_arena_check(pl_pool *pool, const pl_weight_arena *arena, int64_t first, int64_t end, const uint64_t *sums,
                              int all);
/* The sums of the blocks of data: PL_SUM_BLOCK bytes each, the last one shorter; bytes is a multiple of 64. A change within 8
 * aligned bytes is found in any case, any other one but once in 2^64. */
#define PL_SUM_BLOCK 2097152
void pl_block_sums(pl_pool *pool, const void *data, int64_t bytes, uint64_t *sums);
/* The matrix whose panels begin at byte `offset` of an arena, which lives on with it. NULL: they do not lie in it, or as
 * pl_matrix_new. */
pl_matrix *pl_matrix_view(pl_weight_arena *arena, int64_t offset, int type, int64_t rows, int64_t cols);
/* Added to a type: its matrix multiplies rows of float32 in 16 bits. Columns are a multiple of 32. */
#define PL_INT16_WEIGHTS 64
/* Whether the selected tier multiplies so faster than with 8-bit blocks, and than in float32. */
int pl_prefers_int16(void);
/* Bytes of a panel of 16 rows; 0: as NULL of pl_matrix_new. */
int64_t pl_panel_bytes(int type, int64_t cols);
/* Packs the panels [first, end) of a matrix to dst, otherwise as pl_matrix_new. */
void pl_pack_panels(pl_pool *pool, int type, const void *src, int drop, int64_t rows, int64_t cols, int64_t first, int64_t end,
                    void *dst);
/* Packs a (rows, cols) matrix of `type` into panels with all threads of the pool. src is not needed afterwards; with
 * `drop` it is a file mapping whose pages leave memory as they are packed. The panels lie in `arena`, which lives on with
 * them, or, if it is NULL or full, on their own.
 * NULL: out of memory, an unknown type, or cols no multiple of the type's block. */
pl_matrix *pl_matrix_new(pl_pool *pool, pl_weight_arena *arena, int type, const void *src, int drop, int64_t rows, int64_t cols);
void pl_matrix_free(pl_matrix *matrix);
int64_t pl_matrix_bytes(const pl_matrix *matrix);

/* ---- Experts that stay in their file (exec/expert_memory.c) ---- */

typedef struct pl_expert_memory pl_expert_memory;
/* Memory for some of a model's experts, the others being read when they are needed, `n_readers` parts at a time. files: open
 * for reading, and now this object's own; direct: the same ones past the system's cache (O_DIRECT), or -1. They are (n_files)
 * long. NULL: out of memory; then they are still the caller's. */
pl_expert_memory *pl_expert_memory_new(const int32_t *files, const int32_t *direct, int32_t n_files, int32_t n_readers);
/* Plans that use it keep it. */
void pl_expert_memory_free(pl_expert_memory *memory);
/* A (rows, cols) matrix of `type` that begins at byte `offset` of a file; only products of segments take it, and only while
 * the memory lives. NULL: as pl_matrix_new, or the memory has its room already. */
pl_matrix *pl_expert_memory_add(pl_expert_memory *memory, int32_t file, int64_t offset, int type, int64_t rows, int64_t cols);
/* Once all are added: takes up to `bytes` for them -> what it takes, with the readers' buffers; PL_EINVAL: that is less than
 * pl_expert_memory_least tells; PL_ENOMEM. */
int64_t pl_expert_memory_start(pl_expert_memory *memory, int64_t bytes);
int64_t pl_expert_memory_least(const pl_expert_memory *memory);

/* Of all steps so far: matrices that were needed, those of them that lay in memory from earlier uses, bytes read from files, seconds that
 * threads of the pool waited for them together, and the share of guesses about the next layer that came true lately. */
typedef struct {
    int64_t needed, found, bytes_read;
    double waited, right;
} pl_expert_counts;
void pl_expert_memory_counts(pl_expert_memory *memory, pl_expert_counts *counts);
/* Why a read failed since the last call: errno, or 0 when the file had ended, and which file; PL_EINVAL: none did. */
int pl_expert_memory_failure(pl_expert_memory *memory, int32_t *file);

/* ---- KV cache (cache.c) ---- */

#define PL_PAGE_POSITIONS 32
#define PL_MAX_HEAD_DIM 1024

/* Bytes that a key or a value of `head_dim` elements takes in the cache; PL_EINVAL: not a type that a cache can have
 * (exec/kv_types.def). */
int64_t pl_kv_row_bytes(int type, int head_dim);

typedef struct pl_cache pl_cache;
/* The shape of a page: PL_PAGE_POSITIONS positions of all layers. type_k, type_v: F32, F16, BF16, Q8_0, Q4_0. */
pl_cache *pl_cache_new(int n_layers, int kv_heads, int k_dim, int v_dim, int type_k, int type_v);
/* Pages may outlive it, as when an interpreter ends and finalizes objects in any order. */
void pl_cache_free(pl_cache *cache);
/* Pages made from now on lie on these memory nodes in turn: 16 words, a bit for each node. */
void pl_cache_spread(pl_cache *cache, const uint64_t *nodes);
int64_t pl_cache_page_bytes(const pl_cache *cache);
typedef struct {
    const float *stretch; /* (k_dim): what keys are multiplied by and queries divided by, before they are turned */
    const float *moment;  /* (k_dim, k_dim), of queries so divided: the mean of q q^T */
    const float *mean;    /* (k_dim), of keys so multiplied */
    const float *first;   /* (k_dim), what a key at position 0 is like, so multiplied; whatever is near it loses least */
} pl_key_statistics;
/* Says how the keys of a head are to be rounded, of a cache with 4-bit keys (kv_rounding.c), before a plan is made for it.
 * PL_EINVAL: not a head of such a cache; PL_EUNSUPPORTED: not finite, or queries all zero: the head is left as it was. */
int pl_cache_shape_keys(pl_cache *cache, int layer, int head, const pl_key_statistics *statistics);
/* Bytes that it takes for all heads; 0: this cache has none. */
int64_t pl_cache_rounding_bytes(const pl_cache *cache);
/* Says what 4-bit values of a head are less, before a plan is made for the cache. mean: (v_dim), near to what most are
 * like; first: (v_dim), what a value at position 0 is like. Returns as above; its bytes. */
int pl_cache_shift_values(pl_cache *cache, int layer, int head, const float *mean, const float *first);
int64_t pl_cache_shift_bytes(const pl_cache *cache);
/* A zeroed page -> its address, 0 when out of memory. */
uintptr_t pl_page_new(pl_cache *cache);
void pl_page_free(pl_cache *cache, uintptr_t page);

/* ---- The plan: ops over numbered buffers (exec/) ---- */

typedef struct {
    const float *values; /* (n,), padded with zeros to a multiple of 16; n 0: none */
    int64_t n;
} pl_vector;

typedef struct {
    const uint8_t *data; /* (rows, row_bytes) of a tensor type, as in the file */
    int64_t rows, row_bytes;
    int32_t type;
} pl_table;

typedef struct {
    const pl_matrix *const *items; /* (n,) */
    int64_t n;
} pl_matrices;

typedef struct {
    double *values; /* (n,) */
    int64_t n;
} pl_sums;

/* Types of an op's fields (exec/ops.def says what they mean). */
#define PL_FIELD_INT 0      /* int32_t */
#define PL_FIELD_FLOAT 1    /* float */
#define PL_FIELD_MATRIX 2   /* const pl_matrix * */
#define PL_FIELD_MATRICES 3 /* pl_matrices */
#define PL_FIELD_VECTOR 4   /* pl_vector */
#define PL_FIELD_TABLE 5    /* pl_table */
#define PL_FIELD_SUMS 6     /* pl_sums */
#define PL_FIELD_IN 7       /* int32_t, the number of a buffer, from here on */
#define PL_FIELD_OUT 8
#define PL_FIELD_INOUT 9
#define PL_FIELD_RESULT 10
#define PL_FIELD_ROWS 11
#define PL_FIELD_Q8_IN 12
#define PL_FIELD_Q8_OUT 13
#define PL_FIELD_Q8_INOUT 14
#define PL_FIELD_INTS_IN 15
#define PL_FIELD_INTS_OUT 16
#define PL_FIELD_INTS 17

#define PL_NONE -1   /* an optional field without a buffer */
#define PL_LOGITS -2 /* as a RESULT: the batch's logits; the op is skipped when the batch has no room for them */
#define PL_HIDDEN -3 /* likewise */

/* Which rows of the batch an op works on. */
#define PL_ROWS_TOKENS 0
#define PL_ROWS_OUTPUTS 1
#define PL_ROWS_LOGITS 2 /* the first n_logits outputs */
#define PL_ROWS_ANY 3    /* (in ops.def) any of them */

/* An op is a record of pl_op_bytes bytes: this head, then its fields. */
typedef struct {
    int32_t kind;  /* the row of ops.def */
    int32_t rows;  /* PL_ROWS_TOKENS … PL_ROWS_LOGITS */
    int32_t times; /* of those, for each row of the batch (experts: as many as a token has) */
} pl_op_head;

typedef struct {
    const char *name;
    int32_t type, n, optional; /* PL_FIELD_…; elements, each of the type; whether it may be left out */
    int64_t offset;            /* bytes from the op's beginning */
} pl_op_field;

typedef struct pl_op pl_op;
int64_t pl_op_bytes(void);
/* Of the kinds 0, 1, …: the name (NULL past the last), the rows it takes (PL_ROWS_…), and its n fields. */
const char *pl_op_name(int kind);
int pl_op_rows_allowed(int kind);
const pl_op_field *pl_op_fields(int kind, int *n);

/* Buffers have a row for each token of the batch, `times` over: of float32, of 8-bit blocks, or of int32. */
#define PL_BUFFER_FLOATS 0
#define PL_BUFFER_Q8 1 /* width: a multiple of 32 */
#define PL_BUFFER_INTS 2
typedef struct {
    int32_t kind, width, times; /* PL_BUFFER_…; elements of a row */
} pl_buffer;

/* Why a plan cannot be made: `op` is the number of the op that is wrong, or -1. */
typedef struct {
    int32_t op;
    char message[200];
} pl_plan_error;

typedef struct pl_plan pl_plan;
/* spaces: (n_spaces) caches, the shapes of the KV spaces' pages; n_spaces may be 0. Copies ops and shapes; the weights and
 * sums that ops point to must outlive the plan. NULL, with the reason in `error`: an op that does not fit, or out of memory. */
pl_plan *pl_plan_new(pl_pool *pool, const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops,
                     const pl_buffer *buffers, int n_buffers, int max_tokens, int n_ctx, pl_plan_error *error);
void pl_plan_free(pl_plan *plan);
/* exact: activations are rounded to 16 bits, in two blocks of 8, where only blocks that one value dominates have two. */
void pl_plan_set_exact(pl_plan *plan, int exact);
/* Bytes of all buffers and scratch; pl_plan_measure tells them without making the plan (its ops need no weights), or PL_EINVAL
 * with the reason in `error`. */
int64_t pl_plan_bytes(const pl_plan *plan);
int64_t pl_plan_measure(const pl_cache *const *spaces, int n_spaces, const pl_op *ops, int n_ops, const pl_buffer *buffers,
                        int n_buffers, int max_tokens, int n_ctx, int n_threads, pl_plan_error *error);
/* Floats from one row of the batch's outputs to the next, a multiple of 16; 0: the plan has none of them. */
int64_t pl_plan_logits_stride(const pl_plan *plan);
int64_t pl_plan_hidden_stride(const pl_plan *plan);

/* Tokens of one sequence stand together, at consecutive positions below n_ctx; each of the n_sequences has some.
 * Wherever an array is needed, it must not be NULL. */
typedef struct {
    int32_t n_tokens, n_outputs, n_logits, n_sequences, n_embeddings, n_adapters;
    const int32_t *tokens;                /* (n_tokens,) ids; -1 - i: row i of `embeddings` stands in its place */
    const int32_t *positions;             /* (n_tokens,) */
    const int32_t *sequences;             /* (n_tokens,) */
    const int32_t *outputs;               /* (n_outputs,) rows of tokens; logits are wanted of the first n_logits of them */
    const float *adapter_scales;          /* (n_sequences, n_adapters), 0: not used; NULL: no sequence uses any */
    const float *embeddings;              /* (n_embeddings, embedding_stride) */
    int64_t embedding_stride;             /* floats, at least the model's dim */
    const uintptr_t *const *const *pages; /* pages[space][sequence][position / PL_PAGE_POSITIONS] */
    const int32_t *const *lengths; /* lengths[space][sequence]: keys for attention that is not causal; lengths, or that of a
                                    * space, may be NULL: as many as the sequence has positions, with those of this batch */
    float *logits;                 /* (n_logits, logits_stride of the plan), 64-byte aligned; or NULL */
    float *hidden;                 /* (n_outputs, hidden_stride of the plan), 64-byte aligned; or NULL */
    int32_t first_op, end_op;      /* the ops to run; end_op 0: to the last one. A long run may be cut: what ops before
                                    * first_op made of the same batch must still be there */
} pl_batch;

/* Runs the plan, or the batch's part of it, on the pool. `interrupt` (may be NULL) is called by this thread now and then, at least 50 ms
 * apart; when it returns non-zero the run ends with PL_EINTERRUPTED. PL_EINVAL: the batch does not fit the plan, or an op was
 * given a row that is not there (its results are worth nothing). PL_EREAD: an expert could not be read from its file. */
int pl_plan_run(pl_plan *plan, const pl_batch *batch, int (*interrupt)(void));
/* From now on adds up the seconds spent in each op (n_ops) of later runs into `seconds`; NULL ends it. */
void pl_plan_profile(pl_plan *plan, double *seconds);

/* A step to count: n_sequences sequences of `depth` tokens get n_tokens more each. */
typedef struct {
    int32_t n_sequences, n_tokens, depth, n_outputs, n_logits;
} pl_workload;

/* read: bytes from memory that no cache can save (weights, keys and values, table rows). int8, fp32: operations, a
 * multiplication and its addition being two; a division or exponential counts as one. */
typedef struct {
    double read, int8, fp32;
    double codes[5]; /* int8 again, by the width of codes: 4 to 8 bits (pl_code_bits) */
} pl_cost;

/* What op number `op` costs at least. */
int pl_plan_cost(const pl_plan *plan, int op, const pl_workload *work, pl_cost *cost);

/* ---- Distributions (divergence.c) ---- */

/* Of each row of `logits` (n_rows, stride), its first n_vocab: the logarithm of the sum of their exponentials, and the place
 * of the largest. Sums have an order fixed by the row. PL_SAMPLE_ENAN: a logit is NaN or infinite. */
int pl_log_sums(pl_pool *pool, const float *logits, int64_t stride, int32_t n_vocab, int32_t n_rows, double *log_sums,
                int32_t *tops);
/* Kullback-Leibler divergences, sum of p ln(p / q) in nats, of the rows q of `logits` from the rows p of `base`, given the
 * log-sums of both: divergences (n_rows,), never below 0, and exact to about 1e-6 of their value. */
int pl_divergences(pl_pool *pool, const float *base, int64_t base_stride, const double *base_sums, const float *logits,
                   int64_t stride, const double *sums, int32_t n_vocab, int32_t n_rows, double *divergences);

/* ---- Measuring the machine (probe.c) ---- */

/* With the loops of the tier in use, on all threads of the pool, for about `seconds` (the best of many short runs):
 * bytes per second read from `bytes` of memory (whole MB; take well more than the caches hold), and operations per
 * second on int8 and on float32 (a multiplication and its addition are two). Negative: PL_E…. */
double pl_probe_read(pl_pool *pool, size_t bytes, double seconds);
double pl_probe_dot(pl_pool *pool, int bits, double seconds); /* with codes of this width */
double pl_probe_fma(pl_pool *pool, double seconds);
/* The width of the codes that products of many tokens with a tensor type multiply, 4 to 8 bits, where it matters to the tier in
 * use: one that adds up in int16 does so with more products of small codes. 8 for all types otherwise; 0: no quantized type. */
int pl_code_bits(int type);

#endif
