#ifndef PL_API_CPU_H
#define PL_API_CPU_H
#include "api/status.h"

/* ---- CPU and threads (dispatch.c, threads.c) ---- */

#define PL_MAX_THREADS 512

/* Tiers in order of speed, slowest first; NULL past the end. */
const char *pl_isa_name(int index);
int pl_isa_available(int index);
/* Chooses the tier of that name, or the fastest one for NULL, for the whole process -> its index, PL_EINVAL for an
 * unknown name, PL_EUNSUPPORTED for one that this CPU lacks. */
int pl_isa_select(const char *name);

/* Threads by groups of CPUs: `n_threads` of a group keep to its CPUs (a bit each; none: to no CPUs in particular). Nodes are
 * numbered from 0 without gaps, and the groups of a node are neighbours: weights that the pool packs lie in the memory of the
 * node whose threads use them. `speed`: a guess of how fast a core of the group is beside those of others. */
#define PL_MAX_CPUS 8192
typedef struct {
    int32_t n_threads, node;
    double speed;
    uint64_t cpus[128]; /* PL_MAX_CPUS bits */
} pl_cpu_group;
typedef struct pl_pool pl_pool;
/* A pool of as many threads as the groups have, the caller being one of them. One job at a time. follows_cpus: never more run
 * than there are CPUs that the process may use, now or later: those beyond would only take time from those that have work.
 * NULL: out of memory or threads. In a forked child, which has none of the threads, a pool starts its own when first used. */
pl_pool *pl_pool_new(const pl_cpu_group *groups, int n_groups, int follows_cpus);
int pl_pool_running(const pl_pool *pool); /* the caller included */
void pl_pool_free(pl_pool *pool);

/* ---- Measuring the machine (probe.c) ---- */

/* With the loops of the tier in use, on all threads of the pool, for about `seconds` (the best of many short runs):
 * bytes per second read from `bytes` of memory (whole MB; take well more than the caches hold), and operations per
 * second on int8 and on float32 (a multiplication and its addition are two). Negative: PL_E…. */
double pl_probe_read(pl_pool *pool, size_t bytes, double seconds);
double pl_probe_dot(pl_pool *pool, int bits, double seconds); /* of codes of 4 to 8 bits, or of 16: int16 */
double pl_probe_fma(pl_pool *pool, double seconds);
/* The width of the codes that products of many tokens with a tensor type multiply, 4 to 8 bits, where it matters to the tier in
 * use: one that adds up in int16 does so with more products of small codes. 8 for all types otherwise; 0: no quantized type. */
int pl_code_bits(int type);

#endif
