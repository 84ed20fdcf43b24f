/* POSIX threads and memory; Linux extras where they exist. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* madvise, MAP_ANONYMOUS */
#endif
#include "platform/os.h"
#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/futex.h>
#include <linux/mempolicy.h>
#include <sys/syscall.h>
#endif

#define HUGE_PAGE ((size_t)2 << 20)
#define MAPPED ((size_t)8 << 20) /* allocations from this size on are mappings of their own */

struct pl_thread {
    pthread_t id;
    void (*run)(void *);
    void *arg;
};

#ifdef __linux__
struct pl_event {
    int unused; /* the kernel knows who sleeps, by the counter's address */
};
#else
struct pl_event {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
};
#endif

static void *trampoline(void *p)
{
    pl_thread *thread = p;
    thread->run(thread->arg);
    return NULL;
}

#define LEAST_STACK ((size_t)1 << 20) /* products have a quarter of it; some systems give threads 128 KB */

pl_thread *pl_thread_start(void (*run)(void *), void *arg)
{
    pl_thread *thread = malloc(sizeof *thread);
    if (!thread)
        return NULL;
    thread->run = run;
    thread->arg = arg;
    pthread_attr_t attributes;
    size_t stack = 0;
    pthread_attr_init(&attributes);
    pthread_attr_getstacksize(&attributes, &stack);
    if (stack < LEAST_STACK)
        pthread_attr_setstacksize(&attributes, LEAST_STACK);
    const int failed = pthread_create(&thread->id, &attributes, trampoline, thread) != 0;
    pthread_attr_destroy(&attributes);
    if (failed) {
        free(thread);
        return NULL;
    }
    return thread;
}

void pl_thread_join(pl_thread *thread)
{
    pthread_join(thread->id, NULL);
    free(thread);
}

void pl_thread_forget(pl_thread *thread) { free(thread); }

static _Atomic unsigned forks;
static void count_fork(void) { atomic_fetch_add(&forks, 1); }
static void watch_forks(void) { pthread_atfork(NULL, NULL, count_fork); }

unsigned pl_forks(void)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, watch_forks);
    return atomic_load(&forks);
}

#ifdef __linux__
pl_event *pl_event_new(void) { return malloc(sizeof(pl_event)); }
void pl_event_renew(pl_event *event) { (void)event; }
void pl_event_free(pl_event *event) { free(event); }

void pl_event_wait(pl_event *event, const _Atomic uint32_t *counter, uint32_t seen)
{
    (void)event;
    while (atomic_load(counter) == seen)
        syscall(SYS_futex, counter, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

void pl_event_wake(pl_event *event, const _Atomic uint32_t *counter)
{
    (void)event;
    syscall(SYS_futex, counter, FUTEX_WAKE_PRIVATE, INT_MAX, NULL, NULL, 0);
}
#else
pl_event *pl_event_new(void)
{
    pl_event *event = malloc(sizeof *event);
    if (event)
        pl_event_renew(event);
    return event;
}

void pl_event_renew(pl_event *event)
{
    pthread_mutex_init(&event->mutex, NULL);
    pthread_cond_init(&event->changed, NULL);
}

void pl_event_free(pl_event *event)
{
    pthread_cond_destroy(&event->changed);
    pthread_mutex_destroy(&event->mutex);
    free(event);
}

void pl_event_wait(pl_event *event, const _Atomic uint32_t *counter, uint32_t seen)
{
    pthread_mutex_lock(&event->mutex);
    while (atomic_load(counter) == seen)
        pthread_cond_wait(&event->changed, &event->mutex);
    pthread_mutex_unlock(&event->mutex);
}

void pl_event_wake(pl_event *event, const _Atomic uint32_t *counter)
{
    (void)counter;
    pthread_mutex_lock(&event->mutex);
    pthread_cond_broadcast(&event->changed);
    pthread_mutex_unlock(&event->mutex);
}
#endif

struct pl_monitor {
    pthread_mutex_t mutex;
    pthread_cond_t conditions[2];
};

pl_monitor *pl_monitor_new(void)
{
    pl_monitor *monitor = malloc(sizeof *monitor);
    if (monitor)
        pl_monitor_renew(monitor);
    return monitor;
}

void pl_monitor_renew(pl_monitor *monitor)
{
    pthread_mutex_init(&monitor->mutex, NULL);
    for (int i = 0; i < 2; i++)
        pthread_cond_init(&monitor->conditions[i], NULL);
}

void pl_monitor_free(pl_monitor *monitor) { free(monitor); }
void pl_monitor_enter(pl_monitor *monitor) { pthread_mutex_lock(&monitor->mutex); }
void pl_monitor_leave(pl_monitor *monitor) { pthread_mutex_unlock(&monitor->mutex); }
void pl_monitor_wait(pl_monitor *monitor, int condition) { pthread_cond_wait(&monitor->conditions[condition], &monitor->mutex); }
void pl_monitor_notify(pl_monitor *monitor, int condition) { pthread_cond_broadcast(&monitor->conditions[condition]); }

int64_t pl_read_at(int file, void *to, int64_t bytes, int64_t offset)
{
    int64_t done = 0;
    while (done < bytes) {
        ssize_t n = pread(file, (uint8_t *)to + done, (size_t)(bytes - done), (off_t)(offset + done));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && done == 0)
            return -1;
        if (n <= 0)
            break;
        done += n;
    }
    return done;
}

void pl_close(int file) { close(file); }

void pl_yield(void) { sched_yield(); }

double pl_seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

int pl_cpus_in(const uint64_t *cpus)
{
    int n = 0;
    for (int i = 0; i < PL_CPU_WORDS; i++)
        n += __builtin_popcountll(cpus[i]);
    return n;
}

int pl_cpus_allowed(uint64_t *cpus)
{
#ifdef __linux__
    uint64_t own[PL_CPU_WORDS] = {0};
    if (!cpus)
        cpus = own;
    memset(cpus, 0, sizeof own);
    if (syscall(SYS_sched_getaffinity, 0, sizeof own, cpus) > 0)
        return pl_cpus_in(cpus);
#else
    if (cpus)
        memset(cpus, 0, sizeof *cpus * PL_CPU_WORDS);
#endif
    long online = sysconf(_SC_NPROCESSORS_ONLN);
    return online > 0 ? (int)online : 1;
}

void pl_cpus_keep_to(const uint64_t *cpus)
{
#ifdef __linux__
    if (pl_cpus_in(cpus) > 0)
        syscall(SYS_sched_setaffinity, 0, sizeof *cpus * PL_CPU_WORDS, cpus);
#else
    (void)cpus;
#endif
}

static size_t whole_pages(size_t bytes)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    return (bytes + page - 1) / page * page;
}

/* Fresh pages from an address on that is a multiple of a huge page. */
static uint8_t *map_aligned(size_t bytes)
{
    size_t used = whole_pages(bytes);
    uint8_t *map = mmap(NULL, used + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return NULL;
    size_t before = (HUGE_PAGE - (uintptr_t)map % HUGE_PAGE) % HUGE_PAGE;
    if (before > 0)
        munmap(map, before);
    munmap(map + before + used, HUGE_PAGE - before);
    return map + before;
}

static void want_huge_pages(void *memory, size_t bytes)
{
#ifdef MADV_HUGEPAGE
    madvise(memory, bytes, MADV_HUGEPAGE);
#else
    (void)memory, (void)bytes;
#endif
}

void *pl_map_file(int file, int64_t offset, size_t bytes)
{
    uint8_t *room = map_aligned(bytes);
    if (!room)
        return NULL;
    void *map = mmap(room, bytes, PROT_READ, MAP_SHARED | MAP_FIXED, file, (off_t)offset);
    if (map == MAP_FAILED) {
        munmap(room, whole_pages(bytes));
        return NULL;
    }
    want_huge_pages(map, whole_pages(bytes));
    return map;
}

void pl_unmap_file(void *memory, size_t bytes) { munmap(memory, whole_pages(bytes)); }

int pl_in_memory(const void *mapped, size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE), samples = 8;
    uint8_t *begin = (uint8_t *)((uintptr_t)mapped / page * page);
    size_t n = ((uintptr_t)mapped + bytes - (uintptr_t)begin + page - 1) / page;
    for (size_t i = 0; i < samples; i++) {
        unsigned char there = 0;
        if (mincore(begin + (n - 1) * i / (samples - 1) * page, page, (void *)&there) != 0 || !(there & 1))
            return 0;
    }
    return 1;
}

void *pl_alloc(size_t bytes, int zeroed)
{
    void *memory = NULL;
    bytes = (bytes + 63) & ~(size_t)63;
    if (bytes >= MAPPED) { /* own mapping: fresh pages are zero, and freeing gives them back at once */
        memory = map_aligned(bytes);
        if (memory)
            want_huge_pages(memory, whole_pages(bytes));
        return memory;
    }
    if (posix_memalign(&memory, 64, bytes ? bytes : 64) != 0)
        return NULL;
    if (zeroed)
        memset(memory, 0, bytes);
    return memory;
}

void pl_drop_pages(const void *memory, size_t bytes)
{
#ifdef MADV_DONTNEED
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t begin = ((uintptr_t)memory + page - 1) / page * page, end = ((uintptr_t)memory + bytes) / page * page;
    if (begin < end)
        madvise((void *)begin, end - begin, MADV_DONTNEED);
#else
    (void)memory, (void)bytes;
#endif
}

void pl_memory_spread(void *memory, size_t bytes, const uint64_t *nodes)
{
#if defined(__linux__) && defined(SYS_mbind)
    bytes = (bytes + 63) & ~(size_t)63;
    if (bytes >= MAPPED) /* a mapping of its own: nobody else's pages */
        syscall(SYS_mbind, memory, whole_pages(bytes), MPOL_INTERLEAVE, nodes, (unsigned long)PL_NODE_WORDS * 64 + 1, 0);
#else
    (void)memory, (void)bytes, (void)nodes;
#endif
}

void pl_release(void *memory, size_t bytes)
{
    bytes = (bytes + 63) & ~(size_t)63;
    if (!memory)
        return;
    if (bytes >= MAPPED)
        munmap(memory, bytes);
    else
        free(memory);
}
