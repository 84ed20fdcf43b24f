/* Softmax of attention with relative positions against double precision, on queries and keys that are no whole registers, and
 * buckets of every kind: neighbours, repeated, in disorder. */
#include "check.h"

enum { MOST_QUERIES = 64, MOST_KEYS = 150, MOST_POSITIONS = 90 };

typedef struct {
    int n_queries, n_keys, n_positions, reversed;
    int padded, stride; /* floats of a row of scores, and of products */
    float *by_query, *by_key, *content;
    int32_t *buckets;
    uint8_t *runs;
} softmax_case;

static void make_case(softmax_case *c)
{
    const int kind = random_below(3);
    c->n_queries = 1 + random_below(MOST_QUERIES);
    c->n_keys = 1 + random_below(MOST_KEYS);
    c->n_positions = 1 + random_below(MOST_POSITIONS);
    c->reversed = random_below(2);
    c->padded = (c->n_keys + 15) / 16 * 16;
    c->stride = c->n_positions + 16 + random_below(5);
    const int n_distances = c->n_queries + c->n_keys - 1, n_buckets = n_distances + 2 * MOST_QUERIES;
    c->by_query = guarded(sizeof(float) * (size_t)(MOST_QUERIES * c->stride), 4);
    c->by_key = guarded(sizeof(float) * (size_t)(c->n_keys * c->stride), 8);
    c->content = guarded(sizeof(float) * (size_t)(MOST_QUERIES * c->padded), 0);
    c->buckets = guarded(sizeof(int32_t) * (size_t)n_buckets, 4);
    c->runs = guarded((size_t)n_buckets, 1);
    for (int i = 0; i < MOST_QUERIES * c->stride; i++)
        c->by_query[i] = random_float() * 4;
    for (int i = 0; i < c->n_keys * c->stride; i++)
        c->by_key[i] = random_float() * 4;
    for (int i = 0; i < MOST_QUERIES * c->padded; i++)
        c->content[i] = random_float() * (kind == 2 ? 300 : 4);
    memset(c->buckets, 0, sizeof(int32_t) * (size_t)n_buckets);
    memset(c->runs, 0, (size_t)n_buckets);
    for (int i = 0; i < n_distances; i++)
        c->buckets[i] = kind == 0 ? random_below(c->n_positions) : (i / kind) % c->n_positions;
    for (int i = 0; i + 16 <= n_distances; i++) {
        int run = 1, near = 1;
        for (int k = 0; k < 15; k++)
            run &= c->buckets[i + k + 1] == c->buckets[i + k] + 1;
        for (int k = 1; k < 8; k++)
            near &= c->buckets[i + k] >= c->buckets[i] && c->buckets[i + k] < c->buckets[i] + 8;
        c->runs[i] = run ? PL_RUN : near ? PL_NEAR : 0;
    }
}

static void free_case(softmax_case *c)
{
    void *all[] = {c->by_query, c->by_key, c->content, c->buckets, c->runs};
    for (int i = 0; i < COUNT(all); i++)
        guarded_free(tiers[0], all[i]);
}

static const float *key_products(const softmax_case *c, int key)
{
    return c->by_key + (c->reversed ? c->n_keys - 1 - key : key) * c->stride;
}

static void check_query(const pl_kernels *tier, const softmax_case *c, int i, const float *weights, float inverse)
{
    double score[MOST_KEYS], top = -INFINITY, sum = 0;
    for (int j = 0; j < c->n_keys; j++) {
        const int bucket = c->buckets[i + j];
        score[j] = 0.3 * ((double)c->content[i * c->padded + j] + (double)c->by_query[i * c->stride + bucket] +
                          (double)key_products(c, j)[bucket]);
        top = score[j] > top ? score[j] : top;
    }
    for (int j = 0; j < c->n_keys; j++)
        sum += exp2(score[j] - top);
    for (int j = 0; j < c->padded; j++) {
        const double expected = j < c->n_keys ? exp2(score[j] - top) / sum : 0, found = (double)weights[j] * (double)inverse;
        if (!(fabs(found - expected) <= 1e-4 * expected + 1e-30)) {
            fail(tier, "query %d, key %d: %g instead of %g", i, j, found, expected);
            return;
        }
    }
}

static void check_tier(const pl_kernels *tier, const softmax_case *c)
{
    const size_t bytes = sizeof(float) * (size_t)(MOST_QUERIES * c->padded);
    float *scores = guarded(bytes, 32), *inverse = guarded(sizeof(float) * (size_t)c->n_queries, 4);
    memcpy(scores, c->content, bytes);
    tier->position_softmax(&(pl_position_softmax){.n_queries = c->n_queries,
                                                  .n_keys = c->n_keys,
                                                  .n_padded = c->padded,
                                                  .scores = scores,
                                                  .scores_stride = c->padded,
                                                  .by_query = c->by_query,
                                                  .by_query_stride = c->stride,
                                                  .by_key = key_products(c, 0),
                                                  .by_key_stride = c->reversed ? -c->stride : c->stride,
                                                  .buckets = c->buckets,
                                                  .runs = c->runs,
                                                  .scale = 0.3f,
                                                  .inverse = inverse});
    for (int i = 0; i < c->n_queries; i++)
        check_query(tier, c, i, scores + i * c->padded, inverse[i]);
    guarded_free(tier, scores);
    guarded_free(tier, inverse);
}

void check_position_softmax(void)
{
    for (int i = 0; i < (quick ? 40 : 200); i++) {
        softmax_case c;
        make_case(&c);
        begin_case("position softmax, %d queries, %d keys, %d positions", c.n_queries, c.n_keys, c.n_positions);
        for (int t = 0; t < n_tiers; t++)
            check_tier(tiers[t], &c);
        free_case(&c);
    }
}
