/* What the files of an expert memory share: its state, all of it changed inside one monitor where readers wait for work and
 * products for results. expert_slots.c: room for matrices, who gets it, and which goes. expert_requests.c: what a step
 * needs, what it will need next, and the products' side. expert_readers.c: the threads that read files. expert_memory.c:
 * making it and taking it down. */
#ifndef PL_EXPERT_STATE_H
#define PL_EXPERT_STATE_H
#include "exec/expert_memory.h"
#include "platform/os.h"
#include <stdatomic.h>

enum { ABSENT, LOADING, READY, FAILED };

typedef struct {
    int64_t bytes;
    int n_slots, n_matrices; /* that are of this size */
    uint8_t *data;           /* (n_slots, bytes) */
    struct pl_stored_matrix **holders;
} pl_slot_class;

struct pl_stored_matrix {
    pl_expert_memory *memory;
    int file, type;
    int64_t offset, row_bytes; /* in the file */
    int64_t rows, cols, panels, panel_bytes;
    int64_t part_panels, n_parts; /* panels of a read, and reads */
    int class, slot;              /* slot -1: none */
    int state, pinned;            /* pinned: granted, and not given back */
    int wanted, failed;           /* wanted 0: what is being read is of no use any more */
    int64_t next_part, in_flight;
    uint64_t last_use, requested;       /* by the memory's clock */
    int ahead;                          /* it was read before it was requested */
    _Atomic int64_t uses;               /* work items that are to give it back */
    _Atomic(const uint8_t *) panels_at; /* while it is pinned and READY */
};

typedef struct {
    int plain, direct;
} pl_model_file;

typedef struct {
    pl_expert_memory *memory;
    pl_thread *thread;
    uint8_t *buffer; /* begins where reads past the system's cache must */
    void *allocated;
} pl_expert_reader;

struct pl_expert_memory {
    _Atomic int owners;
    unsigned forks; /* pl_forks() of the process whose threads the readers are */
    pl_monitor *monitor;
    pl_model_file *files;
    int n_files, n_readers, started, stopping;
    pl_expert_reader *readers;
    int64_t part_bytes;                                                 /* of the largest read */
    struct pl_stored_matrix **matrices, **requests, **ahead, **guesses; /* each n_matrices long */
    int64_t n_matrices, capacity;
    int64_t n_requests, n_granted, next_read;
    int64_t n_ahead, next_ahead; /* what is read before it is requested */
    int64_t n_guesses;           /* what a router's guess named for the next request */
    double right;                /* share of the guesses that came true, the later ones counting more */
    pl_slot_class *classes;
    int n_classes;
    uint64_t clock;
    int scanning; /* most experts of a layer are needed */
    int failure, failed_file;
    pl_expert_counts counts;
};

/* ---- expert_slots.c ---- */

/* The class for one more matrix of `bytes` -> its number; -1: out of memory. */
int pl_slots_add(pl_expert_memory *memory, int64_t bytes);
/* Of a slot of each size. */
int64_t pl_slots_least(const pl_expert_memory *memory);
/* Makes slots of at most `bytes`, but one of each size at least -> what they take; PL_ENOMEM. */
int64_t pl_slots_make(pl_expert_memory *memory, int64_t bytes);
void pl_slots_free(pl_expert_memory *memory);
uint8_t *pl_slot_data(const struct pl_stored_matrix *matrix);
/* A slot for the matrix, to be read into, by the one that may go first; for_ahead: only of one that is not likely to be
 * needed before it -> 0: there is none. */
int pl_slot_take(struct pl_stored_matrix *matrix, int for_ahead);
void pl_slot_leave(struct pl_stored_matrix *matrix, int state);
/* Gives slots to requests in their order, as far as there are any. */
void pl_slots_grant(pl_expert_memory *memory);
/* Lets products have a granted matrix that was read. */
void pl_slot_publish(struct pl_stored_matrix *matrix);

/* ---- expert_readers.c ---- */

/* Enters the monitor. In a process that was forked it starts readers first. */
void pl_readers_enter(pl_expert_memory *memory);
/* Divides the matrix into parts to read. */
void pl_readers_divide(struct pl_stored_matrix *matrix);
/* Of their buffers. */
int64_t pl_readers_bytes(const pl_expert_memory *memory);
/* -> 0, or PL_ENOMEM: there is no memory, or not one thread. */
int pl_readers_start(pl_expert_memory *memory);
void pl_readers_free(pl_expert_memory *memory);

#endif
