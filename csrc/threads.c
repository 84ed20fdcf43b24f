/* The thread pool: workers spin briefly for the next job or barrier and then sleep, so decoding loses no time to wake-ups
 * and an idle engine uses no CPU. */
#include "threads.h"
#include "api.h"
#include "os.h"
#include <stdlib.h>

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

#define SPIN_SECONDS 400e-6 /* a worker waits this long for the next step before it sleeps: longer than a sampler takes */
#define SPINS_BEFORE_YIELD 4000

struct pl_pool {
    int n_threads;
    pl_thread **threads; /* n_threads - 1 */
    pl_event *event;
    void (*job)(void *, int);
    void *arg;
    _Atomic int stopping;
    _Alignas(64) _Atomic uint32_t generation; /* of the job: a change starts the workers */
    _Alignas(64) _Atomic uint32_t sleepers;
    _Alignas(64) _Atomic uint32_t running; /* workers that have not finished the job */
    _Alignas(64) _Atomic uint32_t arrived; /* at the barrier */
    _Alignas(64) _Atomic uint32_t phase;   /* barriers passed */
};

typedef struct {
    pl_pool *pool;
    int index;
} worker_arg;

static void worker(void *p)
{
    worker_arg arg = *(worker_arg *)p;
    pl_pool *pool = arg.pool;
    free(p);
    uint32_t seen = 0;
    for (;;) {
        double deadline = pl_seconds() + SPIN_SECONDS;
        for (int i = 1; atomic_load_explicit(&pool->generation, memory_order_acquire) == seen; i++) {
            relax();
            if (i % 256 == 0 && pl_seconds() > deadline) {
                atomic_fetch_add(&pool->sleepers, 1);
                pl_event_wait(pool->event, &pool->generation, seen);
                atomic_fetch_sub(&pool->sleepers, 1);
            }
        }
        seen++;
        if (atomic_load(&pool->stopping))
            return;
        pool->job(pool->arg, arg.index);
        atomic_fetch_sub_explicit(&pool->running, 1, memory_order_release);
    }
}

static void start(pl_pool *pool)
{
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0)
        pl_event_wake(pool->event);
}

void pl_pool_run(pl_pool *pool, void (*job)(void *, int), void *arg)
{
    if (pool->n_threads > 1) {
        pool->job = job;
        pool->arg = arg;
        atomic_store_explicit(&pool->running, (uint32_t)pool->n_threads - 1, memory_order_relaxed);
        start(pool);
    }
    job(arg, 0);
    for (int i = 1; pool->n_threads > 1 && atomic_load_explicit(&pool->running, memory_order_acquire) != 0; i++) {
        relax();
        if (i % SPINS_BEFORE_YIELD == 0)
            pl_yield();
    }
}

void pl_pool_barrier(pl_pool *pool)
{
    if (pool->n_threads == 1)
        return;
    uint32_t phase = atomic_load_explicit(&pool->phase, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&pool->arrived, 1, memory_order_acq_rel) == (uint32_t)pool->n_threads - 1) {
        atomic_store_explicit(&pool->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&pool->phase, phase + 1, memory_order_release);
        return;
    }
    for (int i = 1; atomic_load_explicit(&pool->phase, memory_order_acquire) == phase; i++) {
        relax();
        if (i % SPINS_BEFORE_YIELD == 0)
            pl_yield();
    }
}

int pl_pool_threads(const pl_pool *pool) { return pool->n_threads; }

pl_pool *pl_pool_new(int n_threads)
{
    if (n_threads < 1 || n_threads > PL_MAX_THREADS)
        return NULL;
    pl_pool *pool = pl_alloc(sizeof *pool, 1);
    if (!pool)
        return NULL;
    pool->n_threads = 1;
    pool->event = pl_event_new();
    pool->threads = calloc((size_t)n_threads, sizeof *pool->threads);
    if (!pool->event || !pool->threads)
        goto fail;
    for (int i = 1; i < n_threads; i++) {
        worker_arg *arg = malloc(sizeof *arg);
        if (!arg)
            goto fail;
        *arg = (worker_arg){pool, i};
        pl_thread *thread = pl_thread_start(worker, arg);
        if (!thread) {
            free(arg);
            goto fail;
        }
        pool->threads[pool->n_threads++ - 1] = thread;
    }
    return pool;
fail:
    pl_pool_free(pool);
    return NULL;
}

void pl_pool_free(pl_pool *pool)
{
    if (!pool)
        return;
    atomic_store(&pool->stopping, 1);
    if (pool->n_threads > 1) {
        start(pool);
        pl_event_wake(pool->event);
        for (int i = 0; i < pool->n_threads - 1; i++)
            pl_thread_join(pool->threads[i]);
    }
    if (pool->event)
        pl_event_free(pool->event);
    free(pool->threads);
    pl_release(pool, sizeof *pool);
}
