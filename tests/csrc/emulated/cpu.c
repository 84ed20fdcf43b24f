/* In the place of csrc/platform/cpu.c in a program whose tiers avxvnni, avx512 and avx512vbmi are compiled with intrinsics.h. */
#include "platform/cpu.h"

unsigned pl_cpu_features(void)
{
    int avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); /* with them comes F16C */
    return avx2 ? PL_CPU_AVX2 | PL_CPU_AVXVNNI | PL_CPU_AVX512 | PL_CPU_VBMI : 0;
}

int pl_cpu_follows_a_stream(void) { return 0; }
