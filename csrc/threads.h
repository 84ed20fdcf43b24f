/* A fixed pool of threads that run one job together, with barriers and shared counters inside the job. */
#ifndef PL_THREADS_H
#define PL_THREADS_H
#include <stdatomic.h>
#include <stdint.h>

typedef struct pl_pool pl_pool;

int pl_pool_threads(const pl_pool *pool);
/* Runs job(arg, thread) once on every thread; the caller is thread 0. Returns when all are done. */
void pl_pool_run(pl_pool *pool, void (*job)(void *arg, int thread), void *arg);
/* Inside a job: every thread waits for every other. */
void pl_pool_barrier(pl_pool *pool);

/* Hands out items 0 … n - 1, `grain` at a time, to whichever thread asks; results never depend on who got which. */
typedef struct {
    _Alignas(64) _Atomic int64_t next;
} pl_counter;
static inline int pl_take(pl_counter *counter, int64_t n, int64_t grain, int64_t *begin, int64_t *end)
{
    int64_t at = atomic_fetch_add_explicit(&counter->next, grain, memory_order_relaxed);
    if (at >= n)
        return 0;
    *begin = at;
    *end = at + grain < n ? at + grain : n;
    return 1;
}

#endif
