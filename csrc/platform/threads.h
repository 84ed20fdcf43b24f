/* A fixed pool of threads that run one job together, and counters that hand out a job's items. */
#ifndef PL_THREADS_H
#define PL_THREADS_H
#include <stdatomic.h>
#include <stdint.h>

typedef struct pl_pool pl_pool;

/* Work that every running thread of the pool enters once, the caller as thread 0. */
typedef struct {
    void (*run)(void *arg, int thread);
    void *arg;
} pl_job;

int pl_pool_threads(const pl_pool *pool); /* at most */
/* Before a job: starts or ends threads as the CPUs that the process may use ask for -> how many will run. */
int pl_pool_prepare(pl_pool *pool);
struct pl_placement *pl_pool_placement(const pl_pool *pool);
/* One owner more: the pool goes with the pl_pool_free of the last one. */
void pl_pool_keep(pl_pool *pool);
/* Runs the job on every thread; returns when all have left it. */
void pl_pool_run(pl_pool *pool, const pl_job *job);
/* The same after pl_pool_prepare, and without waiting for the others: returns when this thread has left the job. Whoever
 * calls it knows by the job's own counters that the work is done; a thread that the system has put aside then finds nothing
 * left to do. The job must stay valid until the next pl_pool_wait_idle. */
void pl_pool_start(pl_pool *pool, const pl_job *job);
/* Waits until no thread is in a job. */
void pl_pool_wait_idle(pl_pool *pool);
/* Waits until ready(arg): spins for a while, then sleeps, so that a thread which the system has put aside gets the core.
 * Whoever makes it ready asks afterwards whether anybody sleeps, and wakes them. */
void pl_pool_wait(pl_pool *pool, int (*ready)(const void *), const void *arg);
int pl_pool_awaited(const pl_pool *pool);
void pl_pool_notify(pl_pool *pool);

/* Hands out items 0 … n - 1 of one round, some at a time, to whichever thread asks; results never depend on who got which.
 * `next` holds the round's number above the index, so that a thread which is late by a round takes nothing. */
typedef struct {
    _Alignas(64) _Atomic uint64_t next;
} pl_counter;

#define PL_ROUND_SHIFT 40
#define PL_ROUND_MASK (((uint64_t)1 << (64 - PL_ROUND_SHIFT)) - 1)
#define PL_INDEX_MASK (((uint64_t)1 << PL_ROUND_SHIFT) - 1)

static inline void pl_counter_open(pl_counter *counter, uint64_t round)
{
    atomic_store_explicit(&counter->next, round << PL_ROUND_SHIFT, memory_order_release);
}
/* Takes [begin, end), `grain` items. All are done when all threads have left the job (pl_pool_run). */
static inline int pl_take(pl_counter *counter, uint64_t round, int64_t n, int64_t grain, int64_t *begin, int64_t *end)
{
    uint64_t seen = atomic_load_explicit(&counter->next, memory_order_acquire);
    for (;;) {
        int64_t index = (int64_t)(seen & PL_INDEX_MASK);
        if (seen >> PL_ROUND_SHIFT != (round & PL_ROUND_MASK) || index >= n)
            return 0;
        *begin = index;
        *end = index + grain < n ? index + grain : n;
        if (atomic_compare_exchange_weak_explicit(&counter->next, &seen, seen + (uint64_t)(*end - index), memory_order_acq_rel,
                                                  memory_order_acquire))
            return 1;
    }
}

#endif
