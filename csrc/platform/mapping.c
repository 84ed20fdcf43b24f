/* File mappings that survive the loss of their file.
 *
 * Reading a page that a truncated file no longer has raises SIGBUS, which ends the process. While a mapping is guarded, the
 * handler puts a page of zeros there instead and counts it; whoever reads the mapping asks for the count before he uses what
 * he made of it. Faults elsewhere go to the handler that was there before. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* MAP_ANONYMOUS */
#endif
#include "api.h"
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

struct pl_mapping {
    _Atomic uintptr_t begin, end; /* end 0: not in use */
    _Atomic int64_t lost;         /* pages */
    pl_mapping *next;
};

static _Atomic(pl_mapping *) mappings; /* the handler walks through them at any time: none is ever freed, but used again */
static struct sigaction previous;
static _Atomic int reported; /* a fault that is not ours was passed on */
static uintptr_t page_bytes;

static int cover(uintptr_t address)
{
    for (pl_mapping *m = atomic_load(&mappings); m; m = m->next) {
        if (address < atomic_load(&m->begin) || address >= atomic_load(&m->end))
            continue;
        void *page = (void *)(address / page_bytes * page_bytes);
        if (mmap(page, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED)
            return 0;
        atomic_fetch_add(&m->lost, 1);
        return 1;
    }
    return 0;
}

/* A handler that ends the process may put this one back and raise the signal again: then the process must end. */
static void pass_on(int number, siginfo_t *info, void *context)
{
    int raised = info->si_code <= 0; /* by a program, not by a fault */
    if (!(raised && atomic_load(&reported))) {
        atomic_store(&reported, !raised);
        if (previous.sa_flags & SA_SIGINFO) {
            previous.sa_sigaction(number, info, context);
            return;
        }
        if (previous.sa_handler == SIG_IGN && raised)
            return;
        if (previous.sa_handler != SIG_DFL && previous.sa_handler != SIG_IGN) {
            previous.sa_handler(number);
            return;
        }
    }
    signal(number, SIG_DFL);
    raise(number); /* takes effect when this handler returns */
}

static void on_fault(int number, siginfo_t *info, void *context)
{
    if (info->si_code != BUS_ADRERR || !cover((uintptr_t)info->si_addr))
        pass_on(number, info, context);
}

/* Before every new mapping: another library may have put its handler over ours meanwhile. Two threads that do this at once
 * write the same. */
static void install(void)
{
    struct sigaction now, ours = {.sa_flags = SA_SIGINFO | SA_ONSTACK};
    page_bytes = (uintptr_t)sysconf(_SC_PAGESIZE);
    if (sigaction(SIGBUS, NULL, &now) != 0 || (now.sa_flags & SA_SIGINFO && now.sa_sigaction == on_fault))
        return;
    previous = now;
    ours.sa_sigaction = on_fault;
    sigemptyset(&ours.sa_mask);
    sigaction(SIGBUS, &ours, NULL);
}

/* Without a lock, which a thread could hold while another one forks. */
static pl_mapping *claim(void)
{
    for (pl_mapping *m = atomic_load(&mappings); m; m = m->next) {
        uintptr_t unused = 0;
        if (atomic_compare_exchange_strong(&m->end, &unused, 1)) /* 1: in use, and before any address */
            return m;
    }
    pl_mapping *m = calloc(1, sizeof *m);
    if (!m)
        return NULL;
    atomic_store(&m->end, 1);
    m->next = atomic_load(&mappings);
    while (!atomic_compare_exchange_weak(&mappings, &m->next, m))
        ;
    return m;
}

pl_mapping *pl_mapping_guard(const void *start, uint64_t bytes)
{
    install();
    pl_mapping *m = claim();
    if (m) {
        atomic_store(&m->lost, 0);
        atomic_store(&m->begin, (uintptr_t)start);
        atomic_store(&m->end, (uintptr_t)start + bytes);
    }
    return m;
}

void pl_mapping_free(pl_mapping *m)
{
    if (m)
        atomic_store(&m->end, 0);
}

int64_t pl_mapping_lost(const pl_mapping *m) { return atomic_load(&m->lost); }
