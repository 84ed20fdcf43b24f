/* Sampling many rows at once: each is the work of one thread, with a sampler of its own. */

#include "sampling/sample.h"

/* Runs a job whose threads take rows from `counter`, on the pool only if there is work for two of its threads. */
void pl_run_rows(pl_pool *pool, int32_t n_rows, pl_counter *counter, const pl_job *job)
{
    pl_counter_open(counter, 1);
    if (pool && n_rows > 1)
        pl_pool_run(pool, job);
    else
        job->run(job->arg, 0);
}

typedef struct {
    pl_sampler *const *samplers;
    const float *const *logits;
    const uint32_t *const *masks;
    int32_t n_rows;
    int32_t *tokens; /* (n_rows,) in: an error, or 0 for a row that is to be sampled */
    pl_counter counter;
} sample_job;

static void sample_thread(void *arg, int thread)
{
    sample_job *job = arg;
    int64_t i, end;
    (void)thread;
    while (pl_take(&job->counter, 1, job->n_rows, 1, &i, &end))
        if (job->tokens[i] == 0)
            job->tokens[i] = pl_sample_masked(job->samplers[i], job->logits[i], job->masks ? job->masks[i] : NULL);
}

int pl_sample_rows(pl_pool *pool, pl_sampler *const *samplers, const float *const *logits, const uint32_t *const *masks,
                   int32_t n_rows, int32_t *tokens)
{
    sample_job job = {.samplers = samplers, .logits = logits, .masks = masks, .n_rows = n_rows, .tokens = tokens};
    if (n_rows < 0)
        return PL_EINVAL;
    for (int32_t i = 0; i < n_rows; i++) {
        tokens[i] = samplers[i]->busy ? PL_EINVAL : 0;
        samplers[i]->busy = true;
    }
    pl_run_rows(pool, n_rows, &job.counter, &(pl_job){sample_thread, &job});
    for (int32_t i = 0; i < n_rows; i++)
        samplers[i]->busy = false;
    return PL_OK;
}
