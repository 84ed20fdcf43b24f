/* Where the threads of a pool run, and what part of an op each of them is given first. */
#ifndef PL_PLACEMENT_H
#define PL_PLACEMENT_H
#include "api.h"
#include "platform/work_queue.h"

/* Steps of a few tokens wait for memory, prompts for arithmetic: kinds of cores differ in either. */
enum { PL_FEW_TOKENS, PL_MANY_TOKENS, PL_STEP_KINDS };

/* Groups of CPUs, each with a number of threads; threads are numbered group after group, nodes one after the other. */
typedef struct pl_placement pl_placement;

/* n_threads: of all groups. NULL: out of memory, or groups that do not fit. */
pl_placement *pl_placement_new(const pl_cpu_group *groups, int n_groups, int n_threads);
void pl_placement_free(pl_placement *placement);
/* Keeps the calling thread to the CPUs of the group that `thread` is of, as far as it may use them. -> 1, with the CPUs that
 * it may use in `before` (PL_CPU_WORDS), or 0 when nothing changes. */
int pl_placement_pin(const pl_placement *placement, int thread, uint64_t *before);
/* How the items of a step's ops are divided over `threads` threads. What threads have done since is looked at first. */
const pl_division *pl_placement_divide(pl_placement *placement, int threads, int step_kind);
/* Counts what a thread has done of an op, where cores differ. */
void pl_placement_worked(pl_placement *placement, int thread, int step_kind, int64_t items);

#endif
