/* The list of tiers, slowest first, and the choice among them. */
#include "api.h"
#include "platform/cpu.h"
#include "kernels/kernels.h"
#include <stdlib.h>
#include <string.h>

extern const pl_kernels pl_kernels_scalar;
#if defined(__x86_64__)
extern const pl_kernels pl_kernels_avx2, pl_kernels_avxvnni, pl_kernels_avx512;
#elif defined(__aarch64__)
extern const pl_kernels pl_kernels_neon, pl_kernels_neon_dotprod, pl_kernels_neon_i8mm;
#endif

typedef struct {
    const pl_kernels *kernels;
    unsigned needs;
} tier;

static const tier tiers[] = {
    {&pl_kernels_scalar, 0},
#if defined(__x86_64__)
    {&pl_kernels_avx2, PL_CPU_AVX2},
    {&pl_kernels_avxvnni, PL_CPU_AVX2 | PL_CPU_AVXVNNI},
    {&pl_kernels_avx512, PL_CPU_AVX2 | PL_CPU_AVX512},
#elif defined(__aarch64__)
    {&pl_kernels_neon, PL_CPU_NEON},
    {&pl_kernels_neon_dotprod, PL_CPU_NEON | PL_CPU_DOTPROD},
    {&pl_kernels_neon_i8mm, PL_CPU_NEON | PL_CPU_DOTPROD | PL_CPU_I8MM},
#endif
};
#define N_TIERS ((int)(sizeof tiers / sizeof tiers[0]))

static const pl_kernels *current;

const pl_kernels *pl_kernels_current(void) { return current; }

const char *pl_isa_name(int index) { return index >= 0 && index < N_TIERS ? tiers[index].kernels->name : NULL; }

int pl_isa_available(int index)
{
    return index >= 0 && index < N_TIERS && (tiers[index].needs & ~pl_cpu_features()) == 0;
}

int pl_isa_select(const char *name)
{
    for (int i = N_TIERS - 1; i >= 0; i--) {
        if (name && strcmp(name, tiers[i].kernels->name) != 0)
            continue;
        if (!pl_isa_available(i)) {
            if (name)
                return PL_EUNSUPPORTED;
            continue;
        }
        current = tiers[i].kernels;
        return i;
    }
    return PL_EINVAL;
}
