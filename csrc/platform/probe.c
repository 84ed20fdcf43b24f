/* What this machine can do at best: memory read per second, multiply-adds per second, by the loops of the tier in use
 * (kernels/probe.inc) on all threads of a pool. Results are judged against these limits. */
#include "api.h"
#include "kernels/kernels.h"
#include "platform/os.h"
#include "platform/placement.h"
#include <stdatomic.h>

#define PIECE ((int64_t)1 << 20) /* bytes that a thread takes at a time */
#define WINDOW 0.02              /* seconds of one measurement of the units; the best counts */
#define ROUNDS 20000             /* between two looks at the clock */

typedef struct {
    const pl_kernels *kernels;
    uint8_t *memory;
    int64_t pieces;
    int streams;
    int64_t ahead;
    uint64_t round;
    const pl_division *division;
    pl_counter counters[PL_MAX_NODES]; /* each node's threads have memory of their own, as with weights */
    _Atomic uint32_t sum;
} read_job;

static int take(read_job *job, int thread, int64_t grain, int64_t *begin, int64_t *end)
{
    const pl_division *d = job->division;
    for (int i = 0; i < d->nodes; i++) {
        const int node = (d->node_of[thread] + i) % d->nodes;
        const int64_t first = pl_node_cut(d, job->pieces, node);
        if (!pl_take(&job->counters[node], job->round, pl_node_cut(d, job->pieces, node + 1) - first, grain, begin, end))
            continue;
        *begin += first;
        *end += first;
        return 1;
    }
    return 0;
}

static void fill(void *arg, int thread)
{
    read_job *job = arg;
    int64_t begin, end;
    while (take(job, thread, 4, &begin, &end))
        for (int64_t i = begin * PIECE; i < end * PIECE; i += 64)
            *(volatile uint32_t *)(job->memory + i) = 1;
}

static void read_all(void *arg, int thread)
{
    read_job *job = arg;
    int64_t begin, end;
    uint32_t sum = 0;
    while (take(job, thread, 1, &begin, &end))
        sum += job->kernels->probe_read(job->memory + begin * PIECE, PIECE, job->streams, job->ahead);
    atomic_fetch_add(&job->sum, sum);
}

static double timed(pl_pool *pool, read_job *job, void (*run)(void *, int))
{
    const pl_job work = {run, job};
    job->round++;
    job->division = pl_placement_divide(pl_pool_placement(pool), pl_pool_prepare(pool), PL_FEW_TOKENS);
    for (int i = 0; i < job->division->nodes; i++)
        pl_counter_open(&job->counters[i], job->round);
    double start = pl_seconds();
    pl_pool_run(pool, &work);
    return pl_seconds() - start;
}

double pl_probe_read(pl_pool *pool, size_t bytes, double seconds)
{
    static const struct {
        int streams;
        int64_t ahead;
    } ways[] = {{1, 0}, {1, 4 << 10}, {1, 12 << 10}, {2, 0}, {2, 4 << 10}};
    const int n_ways = (int)(sizeof ways / sizeof ways[0]);
    read_job job = {.kernels = pl_kernels_current(), .pieces = (int64_t)bytes / PIECE};
    if (job.pieces < 1 || !job.kernels)
        return PL_EINVAL;
    bytes = (size_t)(job.pieces * PIECE);
    job.memory = pl_alloc(bytes, 1);
    if (!job.memory)
        return PL_ENOMEM;
    timed(pool, &job, fill);
    double best = 1e30, end = pl_seconds() + seconds;
    for (int i = 0; i < n_ways || pl_seconds() < end; i++) {
        job.streams = ways[i % n_ways].streams;
        job.ahead = ways[i % n_ways].ahead;
        atomic_store(&job.sum, 0);
        double took = timed(pool, &job, read_all);
        if (took < best && atomic_load(&job.sum) == (uint32_t)(bytes / 64)) /* all was read */
            best = took;
    }
    pl_release(job.memory, bytes);
    return (double)bytes / best;
}

typedef struct {
    const pl_kernels *kernels;
    int bits; /* of probe_dot's codes; 0: probe_fma */
    double end;
    _Atomic int64_t done;
} unit_job;

static void run_loop(void *arg, int thread)
{
    unit_job *job = arg;
    volatile uint32_t sink = 0;
    int64_t done = 0;
    (void)thread;
    do
        done += job->bits ? job->kernels->probe_dot(ROUNDS, job->bits, &sink) : job->kernels->probe_fma(ROUNDS, &sink);
    while (pl_seconds() < job->end);
    atomic_fetch_add(&job->done, done);
}

static double probe_units(pl_pool *pool, int bits, double seconds)
{
    unit_job job = {.kernels = pl_kernels_current(), .bits = bits};
    if (!job.kernels)
        return PL_EINVAL;
    const pl_job work = {run_loop, &job};
    double best = 0.0, end = pl_seconds() + seconds;
    do {
        double start = pl_seconds();
        atomic_store(&job.done, 0);
        job.end = start + WINDOW;
        pl_pool_run(pool, &work);
        double rate = (double)atomic_load(&job.done) / (pl_seconds() - start);
        best = rate > best ? rate : best;
    } while (pl_seconds() < end);
    return best;
}

double pl_probe_dot(pl_pool *pool, int bits, double seconds)
{
    return (bits >= 4 && bits <= 8) || bits == 16 ? probe_units(pool, bits, seconds) : PL_EINVAL;
}

double pl_probe_fma(pl_pool *pool, double seconds) { return probe_units(pool, 0, seconds); }

int pl_prefers_int16(void)
{
    const pl_kernels *kernels = pl_kernels_current();
    return kernels && kernels->prefers_int16();
}

int pl_code_bits(int type)
{
    const pl_kernels *kernels = pl_kernels_current();
    return kernels ? kernels->code_bits(type) : 0;
}
