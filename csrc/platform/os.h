/* What differs between operating systems: threads that sleep and wake, aligned memory. os_posix.c is the only
 * implementation so far; a port to Windows is a second file like it. */
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
void pl_event_wake(pl_event *);

void pl_yield(void);
double pl_seconds(void);                  /* monotonic */
void *pl_alloc(size_t bytes, int zeroed); /* 64-byte aligned; huge pages asked for where large; NULL when out of memory */
void pl_release(void *memory, size_t bytes);
/* Whole pages of a file mapping that may leave memory; they come back from the file when read again. A hint. */
void pl_drop_pages(const void *memory, size_t bytes);

#endif
