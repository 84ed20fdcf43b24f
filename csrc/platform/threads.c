/* The thread pool: workers spin briefly for the next job and then sleep, so decoding loses no time to wake-ups
 * and an idle engine uses no CPU. Inside a job, too, who waits for another thread sleeps soon: a core that goes idle takes a
 * thread over that the system had put aside behind another program. */
#include "platform/threads.h"
#include "api.h"
#include "platform/os.h"
#include "platform/placement.h"

#if defined(__x86_64__) || defined(__i386__)
#define relax() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define relax() __asm__ volatile("yield")
#else
#define relax() ((void)0)
#endif

#define SPIN_SECONDS 400e-6  /* a worker waits this long for the next step before it sleeps: longer than a sampler takes */
#define SPIN_IN_JOB 100e-6   /* longer than the last pieces of most ops take */
#define SPINS_BEFORE_LOOK 64 /* at the clock */
#define LOOK_AT_CPUS 50e-3   /* seconds between two counts of the CPUs */

typedef struct {
    pl_thread *thread; /* NULL: could not be started again in a forked child; the others do its part */
    pl_pool *pool;
    int index;
    _Alignas(64) _Atomic uint32_t finished; /* the last generation of jobs that this worker has left */
} pl_worker;

struct pl_pool {
    int n_threads;      /* at most */
    int follows_cpus;   /* never more threads than CPUs that the process may use */
    double looked;      /* when these were counted */
    unsigned forks;     /* pl_forks() of the process whose threads the workers are */
    pl_worker *workers; /* n_threads - 1, of which n_running - 1 are there */
    pl_event *event;
    pl_placement *placement;
    _Atomic int owners; /* Python may let go of pool and plans in any order */
    _Alignas(64) _Atomic(const pl_job *) job;
    _Atomic uint32_t generation;            /* of the job: a change starts the workers */
    _Atomic int n_running;                  /* the caller and workers 1 … n_running - 1; the others end when they next wake */
    _Alignas(64) _Atomic uint32_t sleepers; /* of the workers, between jobs */
    _Alignas(64) _Atomic uint32_t waiters;  /* who sleep in pl_pool_wait */
    _Alignas(64) _Atomic uint32_t notices;  /* a change wakes them */
};

void pl_pool_wait(pl_pool *pool, int (*ready)(const void *), const void *arg)
{
    double deadline = 0;
    for (int i = 1; !ready(arg); i++) {
        relax();
        if (i % SPINS_BEFORE_LOOK)
            continue;
        double now = pl_seconds();
        if (deadline == 0)
            deadline = now + SPIN_IN_JOB;
        if (now < deadline)
            continue;
        uint32_t seen = atomic_load(&pool->notices);
        atomic_fetch_add(&pool->waiters, 1);
        atomic_thread_fence(memory_order_seq_cst); /* whoever makes it ready from here on sees a waiter */
        if (!ready(arg))
            pl_event_wait(pool->event, &pool->notices, seen);
        atomic_fetch_sub(&pool->waiters, 1);
    }
}

int pl_pool_awaited(const pl_pool *pool)
{
    atomic_thread_fence(memory_order_seq_cst);
    return atomic_load_explicit(&pool->waiters, memory_order_relaxed) > 0;
}

void pl_pool_notify(pl_pool *pool)
{
    atomic_fetch_add(&pool->notices, 1);
    pl_event_wake(pool->event, &pool->notices);
}

static void worker(void *p)
{
    pl_worker *self = p;
    pl_pool *pool = self->pool;
    uint64_t before[PL_CPU_WORDS];
    pl_placement_pin(pool->placement, self->index, before);
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
        if (self->index >= atomic_load(&pool->n_running))
            return;
        const pl_job *job = atomic_load_explicit(&pool->job, memory_order_acquire);
        job->run(job->arg, self->index);
        atomic_store_explicit(&self->finished, seen, memory_order_release);
        if (pl_pool_awaited(pool))
            pl_pool_notify(pool);
    }
}

static void do_nothing(void *arg, int thread) { (void)arg, (void)thread; }
static const pl_job nothing = {do_nothing, NULL};

static void wake_workers(pl_pool *pool, const pl_job *job)
{
    atomic_store_explicit(&pool->job, job, memory_order_release);
    atomic_fetch_add(&pool->generation, 1);
    if (atomic_load(&pool->sleepers) > 0)
        pl_event_wake(pool->event, &pool->generation);
}

/* After a fork: the workers are in another process, whatever they were doing. */
static void forget_workers(pl_pool *pool)
{
    for (int i = 1; i < atomic_load(&pool->n_running); i++)
        pl_thread_forget(pool->workers[i - 1].thread);
    atomic_store(&pool->n_running, 1);
    pl_event_renew(pool->event);
    atomic_store(&pool->sleepers, 0);
    atomic_store(&pool->waiters, 0);
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

/* As many as can be started up to `n` in all. */
static void start_workers(pl_pool *pool, int n)
{
    int i = atomic_load(&pool->n_running);
    for (; i < n; i++) {
        atomic_store(&pool->n_running, i + 1); /* before it looks whether it is wanted */
        if (!start_worker(pool, i))
            break;
    }
    atomic_store(&pool->n_running, i);
}

/* Nobody is in a job: those past `n` end. */
static void stop_workers(pl_pool *pool, int n)
{
    int before = atomic_load(&pool->n_running);
    atomic_store(&pool->n_running, n);
    wake_workers(pool, &nothing);
    for (int i = n; i < before; i++)
        pl_thread_join(pool->workers[i - 1].thread);
}

static int is_foreign(const pl_pool *pool) { return pool->forks != pl_forks(); }

/* Gives a pool that this process has inherited by a fork threads of its own. */
static void adopt(pl_pool *pool)
{
    forget_workers(pool);
    pool->forks = pl_forks();
    pool->looked = -1;
}

static int workers_idle(const void *arg)
{
    const pl_pool *pool = arg;
    uint32_t generation = atomic_load_explicit(&pool->generation, memory_order_relaxed);
    for (int i = 1; i < atomic_load_explicit(&pool->n_running, memory_order_relaxed); i++)
        if (atomic_load_explicit(&pool->workers[i - 1].finished, memory_order_acquire) != generation)
            return 0;
    return 1;
}

void pl_pool_wait_idle(pl_pool *pool)
{
    if (!is_foreign(pool)) /* there nobody is in a job: a fork takes only the thread along that calls it */
        pl_pool_wait(pool, workers_idle, pool);
}

int pl_pool_prepare(pl_pool *pool)
{
    if (is_foreign(pool))
        adopt(pool);
    int n = atomic_load(&pool->n_running), wanted = pool->n_threads;
    if (wanted == 1 || (pool->looked >= 0 && !pool->follows_cpus))
        return n;
    double now = pl_seconds();
    if (pool->looked >= 0 && now - pool->looked < LOOK_AT_CPUS)
        return n;
    pool->looked = now;
    if (pool->follows_cpus) {
        int cpus = pl_cpus_allowed(NULL);
        wanted = cpus < wanted ? cpus : wanted;
    }
    if (wanted < n) {
        pl_pool_wait_idle(pool);
        stop_workers(pool, wanted);
    } else if (wanted > n) {
        start_workers(pool, wanted);
    }
    return atomic_load(&pool->n_running);
}

void pl_pool_start(pl_pool *pool, const pl_job *job)
{
    uint64_t before[PL_CPU_WORDS];
    const int pinned = pl_placement_pin(pool->placement, 0, before); /* the caller has other things to do than jobs */
    if (atomic_load(&pool->n_running) > 1)
        wake_workers(pool, job);
    job->run(job->arg, 0);
    if (pinned)
        pl_cpus_keep_to(before);
}

void pl_pool_run(pl_pool *pool, const pl_job *job)
{
    pl_pool_prepare(pool);
    pl_pool_wait_idle(pool);
    pl_pool_start(pool, job);
    pl_pool_wait_idle(pool);
}

int pl_pool_threads(const pl_pool *pool) { return pool->n_threads; }
int pl_pool_running(const pl_pool *pool) { return atomic_load(&pool->n_running); }
void pl_pool_keep(pl_pool *pool) { atomic_fetch_add(&pool->owners, 1); }

pl_pool *pl_pool_new(const pl_cpu_group *groups, int n_groups, int follows_cpus)
{
    int64_t n = 0;
    for (int i = 0; i < n_groups; i++)
        n += groups[i].n_threads;
    if (n < 1 || n > PL_MAX_THREADS)
        return NULL;
    const int n_threads = (int)n;
    pl_pool *pool = pl_alloc(sizeof *pool, 1);
    if (!pool)
        return NULL;
    pool->n_threads = n_threads;
    pool->follows_cpus = follows_cpus;
    pool->looked = -1;
    pool->forks = pl_forks();
    atomic_store(&pool->owners, 1);
    atomic_store(&pool->n_running, 1);
    pool->event = pl_event_new();
    pool->workers = pl_alloc(sizeof *pool->workers * (size_t)n_threads, 1);
    pool->placement = pl_placement_new(groups, n_groups, n_threads);
    if (!pool->event || !pool->workers || !pool->placement) {
        pl_pool_free(pool);
        return NULL;
    }
    pl_pool_prepare(pool);
    if (follows_cpus || pl_pool_running(pool) == n_threads)
        return pool;
    pl_pool_free(pool);
    return NULL;
}

pl_placement *pl_pool_placement(const pl_pool *pool) { return pool->placement; }

void pl_pool_free(pl_pool *pool)
{
    if (!pool || atomic_fetch_sub(&pool->owners, 1) != 1)
        return;
    if (is_foreign(pool)) {
        forget_workers(pool);
    } else if (atomic_load(&pool->n_running) > 1) {
        pl_pool_wait_idle(pool);
        stop_workers(pool, 1);
    }
    if (pool->event)
        pl_event_free(pool->event);
    pl_placement_free(pool->placement);
    pl_release(pool->workers, sizeof *pool->workers * (size_t)pool->n_threads);
    pl_release(pool, sizeof *pool);
}
