/* What differs between operating systems: threads that sleep and wake, aligned memory, files. os_posix.c is the only
 * implementation so far; a port to Windows is a second file like it, and one like mapping.c. */
#ifndef PL_OS_H
#define PL_OS_H
#include <stddef.h>
#include <stdint.h>

typedef struct pl_thread pl_thread;
typedef struct pl_event pl_event; /* a counter that can be waited for */

pl_thread *pl_thread_start(void (*run)(void *), void *arg);
void pl_thread_join(pl_thread *);
void pl_thread_forget(pl_thread *); /* instead of joining: it belongs to the process that this one was forked from */
unsigned pl_forks(void);            /* a number that differs between a process and its forked children */

pl_event *pl_event_new(void);
void pl_event_free(pl_event *);
void pl_event_renew(pl_event *); /* as new, whoever waited: those are in the process that this one was forked from */
/* Sleeps until *counter differs from `seen`. Whoever changes the counter calls pl_event_wake afterwards. */
void pl_event_wait(pl_event *, const _Atomic uint32_t *counter, uint32_t seen);
void pl_event_wake(pl_event *, const _Atomic uint32_t *counter);

/* A lock, inside which one may wait for one of two conditions. */
#define PL_MONITOR_WORK 0
#define PL_MONITOR_RESULT 1
typedef struct pl_monitor pl_monitor;
pl_monitor *pl_monitor_new(void);
void pl_monitor_free(pl_monitor *);
void pl_monitor_renew(pl_monitor *); /* as new, whoever was inside: those are in the process that this one was forked from */
void pl_monitor_enter(pl_monitor *);
void pl_monitor_leave(pl_monitor *);
void pl_monitor_wait(pl_monitor *, int condition);   /* leaves, sleeps until the condition is notified, and enters again */
void pl_monitor_notify(pl_monitor *, int condition); /* all who wait for it */

/* Reads up to `bytes` of a file from `offset` on -> how many there were, or less than 0 with errno. */
int64_t pl_read_at(int file, void *to, int64_t bytes, int64_t offset);
void pl_close(int file);

/* CPUs as sets of bits: 128 words of 64 (PL_MAX_CPUS). */
#define PL_CPU_WORDS 128
int pl_cpus_in(const uint64_t *cpus);       /* how many */
int pl_cpus_allowed(uint64_t *cpus);        /* those that the calling thread may run on; NULL: only how many */
void pl_cpus_keep_to(const uint64_t *cpus); /* from now on the calling thread runs on these, if the system can do that */
void pl_yield(void);
double pl_seconds(void);                  /* monotonic */
void *pl_alloc(size_t bytes, int zeroed); /* 64-byte aligned; huge pages asked for where large; NULL when out of memory */
void pl_release(void *memory, size_t bytes);
/* Pages of an allocation that are not there yet come from these memory nodes in turn (PL_NODE_WORDS words, a bit each); of a
 * small one, or where the system cannot do that, from wherever it likes. */
#define PL_NODE_WORDS 16
void pl_memory_spread(void *memory, size_t bytes, const uint64_t *nodes);
/* Bytes of a file from `offset` (a multiple of 2 MB) on, read-only, shared, on huge pages where they lie on such. NULL: not
 * possible. */
void *pl_map_file(int file, int64_t offset, size_t bytes);
void pl_unmap_file(void *memory, size_t bytes);
int pl_in_memory(const void *mapped, size_t bytes); /* whether the pages of a file mapping are; a guess */
/* Whole pages of a file mapping that may leave memory; they come back from the file when read again. A hint. */
void pl_drop_pages(const void *memory, size_t bytes);

#endif
