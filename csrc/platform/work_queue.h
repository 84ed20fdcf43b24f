/* The queue of one op's work items, as one thread sees it.
 *
 * The items are divided over the threads in advance: each has a part of its own, the same part of the tokens (or of the rows of
 * a matrix) in every op. A thread takes from its own part, and when that is used up it steals from the others'. What a thread
 * made is in its own core's cache then; weights are read in one run; and as long as nobody steals, taking an item touches no
 * line of another core (measured: ../kernels/README.md, "Work queue"). */
#ifndef PL_WORK_QUEUE_H
#define PL_WORK_QUEUE_H
#include "api.h" /* PL_MAX_THREADS */
#include "platform/threads.h"

/* The next item of a thread's part, below the op's epoch: whoever comes first with a newer epoch begins it. Epochs are compared
 * in 36 bits, so that a thread would have to sleep through a hundred million runs to take itself for newer. */
#define PL_ITEM_BITS 28
#define PL_ITEM_MASK (((uint64_t)1 << PL_ITEM_BITS) - 1)
#define PL_EPOCH_MASK (((uint64_t)1 << (64 - PL_ITEM_BITS)) - 1)
typedef struct {
    _Alignas(64) _Atomic uint64_t next;
} pl_cursor;

/* Items of an op that are done, counted by one line for every PL_LINE_THREADS threads. A thread reports once, when it finds no
 * more: a line that every thread adds to passes through all of their caches (57 to 255 ns each) while nobody can go on. */
#define PL_LINE_THREADS 16
typedef struct {
    _Alignas(64) _Atomic int64_t count;
} pl_items_done;
static inline int pl_done_lines(int threads) { return (threads + PL_LINE_THREADS - 1) / PL_LINE_THREADS; }
static inline int64_t pl_items_counted(pl_items_done *done, int lines)
{
    int64_t sum = 0;
    for (int i = 0; i < lines; i++)
        sum += atomic_load_explicit(&done[i].count, memory_order_acquire);
    return sum;
}

/* How items are divided over the threads: thread t has [cut[t], cut[t + 1]) of PL_WHOLE. Threads of a memory node are
 * neighbours, and node k has threads [node_first[k], node_first[k + 1]). */
#define PL_WHOLE_BITS 24
#define PL_WHOLE (1u << PL_WHOLE_BITS)
#define PL_MAX_NODES 64
typedef struct {
    int threads, nodes;
    uint32_t version; /* another one when anything is */
    uint32_t cut[PL_MAX_THREADS + 1];
    uint16_t node_first[PL_MAX_NODES + 1];
    uint8_t node_of[PL_MAX_THREADS];
} pl_division;

static inline int64_t pl_cut(int64_t n, uint32_t at) { return (int64_t)((uint64_t)n * at >> PL_WHOLE_BITS); }

typedef struct {
    pl_cursor *cursors; /* one for each thread's part */
    const pl_division *division;
    uint64_t epoch; /* the op's number, counted over all runs */
    int thread;
    int victim;            /* whose part is taken from, counted from the thread's own (0) */
    int64_t first, last;   /* items of the victim's part */
    uint32_t own, victims; /* what of PL_WHOLE the thread has, and the victim */
    int64_t finished;      /* items that this thread has done and not reported */
    int is_product;        /* the op multiplies a matrix: what threads do of it tells how fast they are */
} pl_work_queue;

#define PL_QUARTER 0 /* a grain: what is left of a part is taken by quarters, so that threads finish together */

/* Of n items, the first that threads of a node have; of node `nodes`: n. */
static inline int64_t pl_node_cut(const pl_division *division, int64_t n, int node)
{
    return pl_cut(n, division->cut[division->node_first[node]]);
}

/* The thread whose part is the v-th to be taken from: one's own, the others' of the node, those of other nodes. */
static inline int pl_victim(const pl_division *division, int thread, int v)
{
    const int node = division->node_of[thread], begin = division->node_first[node], here = division->node_first[node + 1] - begin;
    if (v < here)
        return begin + (thread - begin + v) % here;
    const int others = division->threads - here;
    return (begin + here + (v + thread - begin) % others) % division->threads;
}

/* Items that are taken at a time. A slow thread takes less from a fast one, which would wait for it in the end. */
static inline int64_t pl_piece(const pl_work_queue *queue, int64_t left)
{
    int64_t piece = (left + 3) / 4;
    if (queue->own < queue->victims - queue->victims / 8)
        piece = piece * queue->own / queue->victims;
    return piece > 0 ? piece : 1;
}

/* Parts are whole units where there are many tokens; the items of up to PL_SHARED tokens are for any thread. */
#define PL_SHARED 4
static inline int64_t pl_unit(int64_t n_tokens, int64_t items) { return n_tokens > PL_SHARED ? items : 1; }

/* Ops before `epoch` can take nothing from now on. */
static inline void pl_cursor_close(pl_cursor *cursor, uint64_t epoch)
{
    atomic_store_explicit(&cursor->next, epoch << PL_ITEM_BITS, memory_order_seq_cst);
}

static inline int pl_cursor_take(pl_cursor *cursor, const pl_work_queue *queue, int64_t grain, int64_t *begin, int64_t *end)
{
    if (queue->first >= queue->last)
        return 0;
    uint64_t seen = atomic_load_explicit(&cursor->next, memory_order_acquire), epoch = queue->epoch & PL_EPOCH_MASK;
    for (;;) {
        uint64_t newer = (epoch - (seen >> PL_ITEM_BITS)) & PL_EPOCH_MASK;
        int64_t index = newer ? queue->first : (int64_t)(seen & PL_ITEM_MASK);
        if (newer > PL_EPOCH_MASK / 2 || index >= queue->last)
            return 0;
        int64_t piece = grain == PL_QUARTER ? pl_piece(queue, queue->last - index) : grain;
        *begin = index;
        *end = index + piece < queue->last ? index + piece : queue->last;
        if (atomic_compare_exchange_weak_explicit(&cursor->next, &seen, epoch << PL_ITEM_BITS | (uint64_t)*end,
                                                  memory_order_acq_rel, memory_order_acquire))
            return 1;
    }
}

/* Takes [begin, end) of n items, `grain` at the most; parts are whole runs of `unit` items. */
static inline int pl_queue_take(pl_work_queue *queue, int64_t n, int64_t unit, int64_t grain, int64_t *begin, int64_t *end)
{
    const pl_division *division = queue->division;
    for (; queue->victim < division->threads; queue->victim++) {
        const int at = pl_victim(division, queue->thread, queue->victim);
        queue->first = pl_cut(n / unit, division->cut[at]) * unit;
        queue->last = pl_cut(n / unit, division->cut[at + 1]) * unit;
        queue->own = division->cut[queue->thread + 1] - division->cut[queue->thread];
        queue->victims = division->cut[at + 1] - division->cut[at];
        if (pl_cursor_take(&queue->cursors[at], queue, grain, begin, end))
            return 1;
    }
    return 0;
}

static inline void pl_queue_done(pl_work_queue *queue, int64_t items) { queue->finished += items; }

/* What the thread has done is done for all; done: the op's lines. */
static inline void pl_queue_report(const pl_work_queue *queue, pl_items_done *done)
{
    if (queue->finished)
        atomic_fetch_add_explicit(&done[queue->thread / PL_LINE_THREADS].count, queue->finished, memory_order_acq_rel);
    atomic_thread_fence(memory_order_seq_cst); /* of two last reports on two lines, one at least sees the other */
}

#endif
