/* Log-probabilities of rows of logits: those of given tokens and of the best. */

#include <math.h>

#include "sampling/sample.h"

int pl_top_logprobs(const float *logits, int32_t n_tokens, int32_t token, int32_t n, int32_t *ids, float *logprobs,
                    float *token_logprob)
{
    if (n_tokens <= 0 || n < 0 || token < 0 || token >= n_tokens)
        return PL_EINVAL;
    pl_candidates c;
    int rc = pl_candidates_init(&c, n_tokens);
    pl_candidates_set(&c, logits);
    if (!rc)
        rc = pl_scan(&c);
    if (!rc) {
        double log_sum = (double)c.max + log(pl_row_softmax_sum(&c));
        *token_logprob = (float)((double)logits[token] - log_sum);
        if (n > 0)
            rc = pl_keep_top(&c, n);
        for (int32_t i = 0; !rc && i < c.list.n; i++) {
            ids[i] = c.list.id[i];
            logprobs[i] = (float)((double)c.list.logit[i] - log_sum);
        }
        if (!rc)
            rc = c.list.n;
    }
    pl_candidates_free(&c);
    return rc;
}

typedef struct {
    const float *const *logits;
    int32_t n_rows, n_tokens, stride;
    const int32_t *tokens, *n;
    int32_t *ids, *found;
    float *logprobs, *token_logprobs;
    pl_counter counter;
} logprobs_job;

static void logprobs_thread(void *arg, int thread)
{
    logprobs_job *job = arg;
    int64_t i, end;
    (void)thread;
    while (pl_take(&job->counter, 1, job->n_rows, 1, &i, &end))
        job->found[i] = pl_top_logprobs(job->logits[i], job->n_tokens, job->tokens[i], job->n[i], job->ids + i * job->stride,
                                        job->logprobs + i * job->stride, &job->token_logprobs[i]);
}

int pl_top_logprobs_rows(pl_pool *pool, const float *const *logits, int32_t n_rows, int32_t n_tokens, const int32_t *tokens,
                         const int32_t *n, int32_t stride, int32_t *ids, float *logprobs, float *token_logprobs, int32_t *found)
{
    logprobs_job job = {.logits = logits,
                        .n_rows = n_rows,
                        .n_tokens = n_tokens,
                        .stride = stride,
                        .tokens = tokens,
                        .n = n,
                        .ids = ids,
                        .found = found,
                        .logprobs = logprobs,
                        .token_logprobs = token_logprobs};
    for (int32_t i = 0; i < n_rows; i++)
        if (n[i] > stride)
            return PL_EINVAL;
    pl_run_rows(pool, n_rows, &job.counter, &(pl_job){logprobs_thread, &job});
    return PL_OK;
}
