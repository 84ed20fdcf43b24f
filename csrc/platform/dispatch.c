/* The list of tiers, slowest first, and the choice among them. */
#include "api.h"
#include "platform/cpu.h"
#include "kernels/kernels.h"
#include <stdlib.h>
#include <string.h>

extern const pl_kernels pl_kernels_scalar;
#if defined(__x86_64__)
extern const pl_kernels pl_kernels_avx2, pl_kernels_avxvnni, pl_kernels_avx512, pl_kernels_avx512vbmi;
#elif defined(__aarch64__)
extern const pl_kernels pl_kernels_neon, pl_kernels_neon_dotprod, pl_kernels_neon_i8mm;
#endif

typedef struct {
    const pl_kernels *own; /* those that the tier compiles; the others are its parent's */
    int parent;            /* an index below its own */
    unsigned needs;
} tier;

static const tier tiers[] = {
    {&pl_kernels_scalar, 0, 0}, /* compiles all, so it inherits nothing */
#if defined(__x86_64__)
    {&pl_kernels_avx2, 0, PL_CPU_AVX2},
    {&pl_kernels_avxvnni, 1, PL_CPU_AVX2 | PL_CPU_AVXVNNI},
    {&pl_kernels_avx512, 1, PL_CPU_AVX2 | PL_CPU_AVX512},
    {&pl_kernels_avx512vbmi, 3, PL_CPU_AVX2 | PL_CPU_AVX512 | PL_CPU_VBMI},
#elif defined(__aarch64__)
    {&pl_kernels_neon, 0, PL_CPU_NEON},
    {&pl_kernels_neon_dotprod, 1, PL_CPU_NEON | PL_CPU_DOTPROD},
    {&pl_kernels_neon_i8mm, 2, PL_CPU_NEON | PL_CPU_DOTPROD | PL_CPU_I8MM},
#endif
};
#define N_TIERS ((int)(sizeof tiers / sizeof tiers[0]))

static pl_kernels tables[N_TIERS]; /* whole ones, filled in when a tier is first selected */
static const pl_kernels *current;
int pl_gemv_asks = 1;

/* A tier's table: a copy of its parent's, overwritten by what the tier has itself. */
static void fill_table(int index)
{
    const pl_kernels *own = tiers[index].own;
    pl_kernels table = tables[tiers[index].parent];
    table.name = own->name;
#define TAKE_OWN(RESULT, NAME, ARGUMENTS) table.NAME = own->NAME ? own->NAME : table.NAME;
    PL_KERNEL_LIST(TAKE_OWN)
#undef TAKE_OWN
    tables[index] = table;
}

const pl_kernels *pl_kernels_current(void) { return current; }

const char *pl_isa_name(int index) { return index >= 0 && index < N_TIERS ? tiers[index].own->name : NULL; }

int pl_isa_available(int index) { return index >= 0 && index < N_TIERS && (tiers[index].needs & ~pl_cpu_features()) == 0; }

int pl_isa_select(const char *name)
{
    for (int i = N_TIERS - 1; i >= 0; i--) {
        if (name && strcmp(name, tiers[i].own->name) != 0)
            continue;
        if (!pl_isa_available(i)) {
            if (name)
                return PL_EUNSUPPORTED;
            continue;
        }
        for (int t = 0; !current && t < N_TIERS; t++)
            fill_table(t);
        current = &tables[i];
        pl_gemv_asks = !pl_cpu_follows_a_stream();
        return i;
    }
    return PL_EINVAL;
}
