/* Rows of logits as distributions: log-sums and divergences, rows shared out over the threads of a pool. */
#include "api.h"
#include "kernels/kernels.h"
#include "platform/threads.h"
#include <math.h>

typedef struct {
    const pl_kernels *kernels;
    const float *base, *logits;
    int64_t base_stride, stride;
    int32_t n_vocab, n_rows;
    const double *base_sums, *sums;
    double *out;
    int32_t *tops;
    pl_counter counter;
    _Atomic int bad;
} row_job;

static void log_sums_thread(void *arg, int thread)
{
    row_job *job = arg;
    int64_t begin, end;
    (void)thread;
    while (pl_take(&job->counter, 1, job->n_rows, 1, &begin, &end)) {
        const float *row = job->logits + begin * job->stride;
        float top;
        if (job->kernels->row_top(row, job->n_vocab, &top, &job->tops[begin]) != 0)
            atomic_store(&job->bad, 1);
        else
            job->out[begin] = (double)top + log(job->kernels->row_exp_sum(row, job->n_vocab, top));
    }
}

static void divergences_thread(void *arg, int thread)
{
    row_job *job = arg;
    int64_t begin, end;
    (void)thread;
    while (pl_take(&job->counter, 1, job->n_rows, 1, &begin, &end))
        job->out[begin] =
            job->kernels->row_divergence(job->base + begin * job->base_stride, job->logits + begin * job->stride, job->n_vocab,
                                         job->base_sums[begin], job->base_sums[begin] - job->sums[begin]);
}

static int run(pl_pool *pool, row_job *job, void (*thread)(void *, int))
{
    const pl_job work = {thread, job};
    job->kernels = pl_kernels_current();
    if (!job->kernels || job->n_rows < 0 || job->n_vocab < 1 || job->stride < job->n_vocab)
        return PL_EINVAL;
    pl_counter_open(&job->counter, 1);
    pl_pool_run(pool, &work);
    return atomic_load(&job->bad) ? PL_SAMPLE_ENAN : PL_OK;
}

int pl_log_sums(pl_pool *pool, const float *logits, int64_t stride, int32_t n_vocab, int32_t n_rows, double *log_sums,
                int32_t *tops)
{
    row_job job = {.logits = logits, .stride = stride, .n_vocab = n_vocab, .n_rows = n_rows, .out = log_sums, .tops = tops};
    return run(pool, &job, log_sums_thread);
}

int pl_divergences(pl_pool *pool, const float *base, int64_t base_stride, const double *base_sums, const float *logits,
                   int64_t stride, const double *sums, int32_t n_vocab, int32_t n_rows, double *divergences)
{
    row_job job = {.base = base,
                   .logits = logits,
                   .base_stride = base_stride,
                   .stride = stride,
                   .n_vocab = n_vocab,
                   .n_rows = n_rows,
                   .base_sums = base_sums,
                   .sums = sums,
                   .out = divergences};
    if (base_stride < n_vocab)
        return PL_EINVAL;
    return run(pool, &job, divergences_thread);
}
