/* A thread's share of one op's items.
 *
 * Few tokens: all threads take from one counter. Many: each thread has a section of its own, the same part of the tokens in every
 * op, and helps in the others' when it is through. What a thread made is in its own core's cache then. (1B model, cores that hand
 * a line over in 57 ns: quantizing 8192 columns takes 26 ms of a prompt of 512 instead of 43, the whole 3 % less. In a virtual
 * machine that sometimes puts its two CPUs on far chiplets, 255 ns, a 135M model's prompt took 172 ms there and 135 on near ones
 * before.) */
#ifndef PL_SHARE_H
#define PL_SHARE_H
#include "threads.h"

/* The next item of a section, below the number of the op it is for: whoever comes first with a newer op begins it. */
typedef struct {
    _Alignas(64) _Atomic uint64_t next;
} pl_section;

typedef struct {
    pl_counter *counter;
    uint64_t round;
    int thread, threads;
    pl_section *sections; /* of every thread, or NULL */
    uint64_t turn;        /* the op's number, counted over all runs */
    int helped;           /* sections found empty so far, the thread's own first */
    int64_t first, last;  /* items of the section that the last ones were taken from */
} pl_share;

/* Ops before `turn` can take nothing from now on. */
static inline void pl_section_close(pl_section *section, uint64_t turn)
{
    atomic_store_explicit(&section->next, turn << PL_ROUND_SHIFT, memory_order_seq_cst);
}

static inline int pl_section_take(pl_section *section, const pl_share *share, int64_t grain, int64_t *begin, int64_t *end)
{
    uint64_t seen = atomic_load_explicit(&section->next, memory_order_acquire), turn = share->turn & PL_ROUND_MASK;
    for (;;) {
        uint64_t newer = (turn - (seen >> PL_ROUND_SHIFT)) & PL_ROUND_MASK;
        int64_t index = newer ? share->first : (int64_t)(seen & PL_INDEX_MASK);
        if (newer > PL_ROUND_MASK / 2 || index >= share->last)
            return 0;
        *begin = index;
        *end = index + grain < share->last ? index + grain : share->last;
        if (atomic_compare_exchange_weak_explicit(&section->next, &seen, turn << PL_ROUND_SHIFT | (uint64_t)*end,
                                                  memory_order_acq_rel, memory_order_acquire))
            return 1;
    }
}

/* Takes [begin, end) of n items, `grain` at the most; sections are whole runs of `unit` items. */
static inline int pl_share_take(pl_share *share, int64_t n, int64_t unit, int64_t grain, int64_t *begin, int64_t *end)
{
    if (!share->sections) {
        share->first = 0;
        share->last = n;
        return pl_take(share->counter, share->round, n, grain, begin, end);
    }
    for (; share->helped < share->threads; share->helped++) {
        int64_t at = (share->thread + share->helped) % share->threads;
        share->first = n / unit * at / share->threads * unit;
        share->last = n / unit * (at + 1) / share->threads * unit;
        if (pl_section_take(&share->sections[at], share, grain, begin, end))
            return 1;
    }
    return 0;
}

static inline void pl_share_done(pl_share *share, int64_t items) { pl_done(share->counter, items); }

#endif
