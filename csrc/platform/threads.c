/* The thread pool: workers spin briefly for the next job and then sleep, so decoding loses no time to wake-ups
 * and an idle engine uses no CPU. */
#include "platform/threads.h"
#include "api.h"
#include "platform/os.h"

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

#define SPIN_SECONDS 400e-6 /* a worker waits this long for the next step before it sleeps: longer than a sampler takes */
#define SPINS_BEFORE_YIELD 2000

typedef struct {
    pl_thread *thread; /* NULL: could not be started again in a forked child; the others do its part */
    pl_pool *pool;
    int index;
    _Alignas(64) _Atomic uint32_t finished; /* the last generation of jobs that this worker has left */
} pl_worker;

struct pl_pool {
    int n_threads;
    unsigned forks;     /* pl_forks() of the process whose threads the workers are */
    pl_worker *workers; /* n_threads - 1 */
    pl_event *event;
    _Atomic int owners; /* Python may let go of pool and plans in any order */
    _Atomic int stopping;
    _Alignas(64) _Atomic(const pl_job *) job;
    _Atomic uint32_t generation; /* of the job: a change starts the workers */
    _Alignas(64) _Atomic uint32_t sleepers;
};

void pl_spin(int count)
{
    relax();
    if (count % SPINS_BEFORE_YIELD == 0)
        pl_yield();
}

static void worker(void *p)
{
    pl_worker *self = p;
    pl_pool *pool = self->pool;
    uint32_t seen = atomic_load(&self->finished);
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
        seen = atomic_load_explicit(&pool->generation, memory_order_acquire); /* it may have moved by more than one */
        if (atomic_load(&pool->stopping))
            return;
        const pl_job *job = atomic_load_explicit(&pool->job, memory_order_acquire);
        job->run(job->arg, self->index);
        atomic_store_explicit(&self->finished, seen, memory_order_release);
    }
}

static void wake_workers(pl_pool *pool, const pl_job *job)
{
    atomic_store_explicit(&pool->job, job, memory_order_release);
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0)
        pl_event_wake(pool->event);
}

/* After a fork: the workers are in another process, whatever they were doing. */
static void forget_workers(pl_pool *pool)
{
    for (int w = 0; w < pool->n_threads - 1; w++) {
        if (pool->workers[w].thread)
            pl_thread_forget(pool->workers[w].thread);
        pool->workers[w].thread = NULL;
    }
    pl_event_renew(pool->event);
    atomic_store(&pool->sleepers, 0);
}

static int start_worker(pl_pool *pool, int index)
{
    pl_worker *w = &pool->workers[index - 1];
    w->pool = pool;
    w->index = index;
    atomic_store(&w->finished, atomic_load(&pool->generation));
    w->thread = pl_thread_start(worker, w);
    return w->thread != NULL;
}

static int is_foreign(const pl_pool *pool) { return pool->forks != pl_forks(); }

/* Gives a pool that this process has inherited by a fork threads of its own. */
static void adopt(pl_pool *pool)
{
    forget_workers(pool);
    pool->forks = pl_forks();
    for (int i = 1; i < pool->n_threads; i++)
        start_worker(pool, i);
}

void pl_pool_wait_idle(pl_pool *pool)
{
    if (is_foreign(pool))
        return; /* nobody is in a job: a fork takes only the thread along that calls it */
    uint32_t generation = atomic_load(&pool->generation);
    for (int w = 0; w < pool->n_threads - 1; w++)
        for (int i = 1;
             pool->workers[w].thread && atomic_load_explicit(&pool->workers[w].finished, memory_order_acquire) != generation; i++)
            pl_spin(i);
}

void pl_pool_start(pl_pool *pool, const pl_job *job)
{
    if (is_foreign(pool))
        adopt(pool);
    if (pool->n_threads > 1)
        wake_workers(pool, job);
    job->run(job->arg, 0);
}

void pl_pool_run(pl_pool *pool, const pl_job *job)
{
    pl_pool_wait_idle(pool);
    pl_pool_start(pool, job);
    pl_pool_wait_idle(pool);
}

int pl_pool_threads(const pl_pool *pool) { return pool->n_threads; }
void pl_pool_keep(pl_pool *pool) { atomic_fetch_add(&pool->owners, 1); }

pl_pool *pl_pool_new(int n_threads)
{
    if (n_threads < 1 || n_threads > PL_MAX_THREADS)
        return NULL;
    pl_pool *pool = pl_alloc(sizeof *pool, 1);
    if (!pool)
        return NULL;
    pool->n_threads = 1;
    atomic_store(&pool->owners, 1);
    pool->event = pl_event_new();
    pool->workers = pl_alloc(sizeof *pool->workers * (size_t)n_threads, 1);
    if (!pool->event || !pool->workers)
        goto fail;
    pool->forks = pl_forks();
    for (int i = 1; i < n_threads; i++) {
        if (!start_worker(pool, i))
            goto fail;
        pool->n_threads++;
    }
    return pool;
fail:
    pl_pool_free(pool);
    return NULL;
}

void pl_pool_free(pl_pool *pool)
{
    if (!pool || atomic_fetch_sub(&pool->owners, 1) != 1)
        return;
    int n_workers = pool->n_threads - 1;
    if (n_workers > 0 && is_foreign(pool))
        forget_workers(pool);
    else if (n_workers > 0) {
        pl_pool_wait_idle(pool);
        atomic_store(&pool->stopping, 1);
        atomic_fetch_add(&pool->generation, 1);
        pl_event_wake(pool->event);
        for (int i = 0; i < n_workers; i++)
            if (pool->workers[i].thread)
                pl_thread_join(pool->workers[i].thread);
    }
    if (pool->event)
        pl_event_free(pool->event);
    pl_release(pool->workers, sizeof *pool->workers * (size_t)(n_workers + 1));
    pl_release(pool, sizeof *pool);
}
