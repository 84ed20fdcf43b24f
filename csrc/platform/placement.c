/* Threads by memory node and kind of core.
 *
 * Rows of weights lie in the memory of the node whose threads compute them, so that threads keep to their node's CPUs. Where
 * kinds of cores differ, threads keep to one kind, and their part of an op follows what they have done of earlier ones: the
 * others help a slow thread, so that all end together, and what each has done then is its speed. */
#include "platform/placement.h"
#include "platform/os.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LEARN 0.25         /* what a new measurement counts for */
#define ITEMS_ENOUGH 256   /* of each thread, for a measurement */
#define CHANGE_ENOUGH 0.03 /* of a thread's part, for another division */

typedef struct {
    _Alignas(64) _Atomic int64_t items[PL_STEP_KINDS];
} worked;

struct pl_placement {
    int n_groups, n_threads, pins, differ; /* pins: threads keep to CPUs; differ: kinds of cores do */
    pl_cpu_group *groups;
    int *group_of;                      /* (n_threads) */
    double (*speeds)[PL_STEP_KINDS];    /* (n_groups): of a thread */
    double (*published)[PL_STEP_KINDS]; /* those that the divisions are made with */
    worked *worked;                     /* (n_threads) */
    int64_t (*seen)[PL_STEP_KINDS];     /* (n_threads): what of it has been looked at */
    pl_division divisions[PL_STEP_KINDS];
};

static int groups_ok(const pl_cpu_group *groups, int n_groups, int n_threads)
{
    int n = 0;
    for (int i = 0; i < n_groups; i++) {
        n += groups[i].n_threads;
        if (groups[i].n_threads < 1 || n > n_threads || groups[i].node < 0 || groups[i].node >= PL_MAX_NODES ||
            !(groups[i].speed > 0) || (i > 0 && groups[i].node != groups[i - 1].node && groups[i].node != groups[i - 1].node + 1))
            return 0;
    }
    return n == n_threads && groups[0].node == 0;
}

static void set_groups(pl_placement *p, const pl_cpu_group *groups)
{
    int thread = 0;
    for (int i = 0; i < p->n_groups; i++) {
        p->groups[i] = groups[i];
        p->pins |= pl_cpus_in(groups[i].cpus) > 0;
        p->differ |= groups[i].speed != groups[0].speed;
        for (int kind = 0; kind < PL_STEP_KINDS; kind++)
            p->speeds[i][kind] = p->published[i][kind] = groups[i].speed;
        for (int j = 0; j < groups[i].n_threads; j++)
            p->group_of[thread++] = i;
    }
}

pl_placement *pl_placement_new(const pl_cpu_group *groups, int n_groups, int n_threads)
{
    if (!groups_ok(groups, n_groups, n_threads))
        return NULL;
    pl_placement *p = calloc(1, sizeof *p);
    if (!p)
        return NULL;
    p->n_groups = n_groups;
    p->n_threads = n_threads;
    p->groups = calloc((size_t)n_groups, sizeof *p->groups);
    p->group_of = calloc((size_t)n_threads, sizeof *p->group_of);
    p->speeds = calloc((size_t)n_groups, sizeof *p->speeds);
    p->published = calloc((size_t)n_groups, sizeof *p->published);
    p->seen = calloc((size_t)n_threads, sizeof *p->seen);
    p->worked = pl_alloc(sizeof *p->worked * (size_t)n_threads, 1);
    if (!p->groups || !p->group_of || !p->speeds || !p->published || !p->seen || !p->worked) {
        pl_placement_free(p);
        return NULL;
    }
    set_groups(p, groups);
    return p;
}

void pl_placement_free(pl_placement *p)
{
    if (!p)
        return;
    free(p->groups);
    free(p->group_of);
    free(p->speeds);
    free(p->published);
    free(p->seen);
    pl_release(p->worked, sizeof *p->worked * (size_t)p->n_threads);
    free(p);
}

int pl_placement_pin(const pl_placement *p, int thread, uint64_t *before)
{
    const pl_cpu_group *group = &p->groups[p->group_of[thread]];
    uint64_t cpus[PL_CPU_WORDS];
    if (!p->pins || pl_cpus_in(group->cpus) == 0)
        return 0;
    pl_cpus_allowed(before);
    for (int i = 0; i < PL_CPU_WORDS; i++)
        cpus[i] = group->cpus[i] & before[i];
    if (pl_cpus_in(cpus) == 0 || memcmp(cpus, before, sizeof cpus) == 0)
        return 0;
    pl_cpus_keep_to(cpus);
    return 1;
}

/* ---- divisions ---- */

static void divide(const pl_placement *p, int threads, int step_kind, pl_division *d)
{
    double whole = 0, before = 0;
    for (int t = 0; t < threads; t++)
        whole += p->published[p->group_of[t]][step_kind];
    d->threads = threads;
    d->nodes = 0;
    for (int t = 0; t < threads; t++) {
        const pl_cpu_group *group = &p->groups[p->group_of[t]];
        while (d->nodes <= group->node)
            d->node_first[d->nodes++] = (uint16_t)t;
        d->node_of[t] = (uint8_t)group->node;
        /* Rounded up: n items over n threads are one for each. */
        d->cut[t] = p->differ ? (uint32_t)ceil(before / whole * PL_WHOLE)
                              : (uint32_t)(((uint64_t)t * PL_WHOLE + (uint64_t)threads - 1) / (uint64_t)threads);
        before += p->published[p->group_of[t]][step_kind];
    }
    d->node_first[d->nodes] = (uint16_t)threads;
    d->cut[threads] = PL_WHOLE;
}

/* What a thread of each group has done, as a part of all -> 0 while it is too little to tell. */
static int measured(pl_placement *p, int threads, int step_kind, double *shares)
{
    int64_t done[PL_MAX_THREADS], all = 0;
    for (int t = 0; t < threads; t++) {
        done[t] = atomic_load_explicit(&p->worked[t].items[step_kind], memory_order_relaxed) - p->seen[t][step_kind];
        all += done[t];
    }
    if (all < (int64_t)ITEMS_ENOUGH * threads)
        return 0;
    for (int t = 0; t < threads; t++) {
        p->seen[t][step_kind] += done[t];
        shares[p->group_of[t]] += (double)done[t] / (double)all;
    }
    return 1;
}

/* Learns from a measurement -> whether parts should change. */
static int learn(pl_placement *p, int threads, int step_kind)
{
    double shares[PL_MAX_THREADS] = {0}, whole = 0;
    int members[PL_MAX_THREADS] = {0}, changed = 0;
    if (!measured(p, threads, step_kind, shares))
        return 0;
    for (int t = 0; t < threads; t++) {
        members[p->group_of[t]]++;
        whole += p->speeds[p->group_of[t]][step_kind];
    }
    for (int g = 0; g < p->n_groups && members[g] > 0; g++) {
        double *speed = &p->speeds[g][step_kind], measured_speed = shares[g] / members[g] * whole;
        *speed += LEARN * (fmax(measured_speed, whole / threads / 16) - *speed);
        changed |= fabs(*speed / p->published[g][step_kind] - 1) > CHANGE_ENOUGH;
    }
    for (int g = 0; changed && g < p->n_groups; g++)
        p->published[g][step_kind] = p->speeds[g][step_kind];
    return changed;
}

const pl_division *pl_placement_divide(pl_placement *p, int threads, int step_kind)
{
    pl_division *d = &p->divisions[step_kind];
    int other = d->threads != threads;
    if (p->differ && !other)
        other = learn(p, threads, step_kind);
    if (other) {
        divide(p, threads, step_kind, d);
        d->version++;
    }
    return d;
}

void pl_placement_worked(pl_placement *p, int thread, int step_kind, int64_t items)
{
    if (p->differ)
        atomic_fetch_add_explicit(&p->worked[thread].items[step_kind], items, memory_order_relaxed);
}
