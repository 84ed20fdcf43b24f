/* CPUID and XCR0 on x86, HWCAP on Arm. */
#include "platform/cpu.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <stdint.h>

static uint64_t xcr0(void)
{
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static unsigned bit(unsigned reg, int index) { return reg >> index & 1; }

unsigned pl_cpu_features(void)
{
    unsigned a, b, c, d, features = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !bit(c, 27) || !bit(c, 28)) /* OSXSAVE, AVX */
        return 0;
    unsigned fma = bit(c, 12), f16c = bit(c, 29);
    uint64_t saved = xcr0();
    if ((saved & 6) != 6 || !__get_cpuid_count(7, 0, &a, &b, &c, &d))
        return 0;
    if (bit(b, 5) && fma && f16c)
        features |= PL_CPU_AVX2;
    if (features && (saved & 0xe6) == 0xe6 && bit(b, 16) && bit(b, 30) && bit(b, 31) && bit(c, 11))
        features |= PL_CPU_AVX512;
    if (features & PL_CPU_AVX512 && bit(c, 1) && bit(c, 8))
        features |= PL_CPU_VBMI;
    if (features && a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && bit(a, 4))
        features |= PL_CPU_AVXVNNI;
    return features;
}

int pl_cpu_follows_a_stream(void)
{
    unsigned a, b, c, d;
    if (!__get_cpuid(0, &a, &b, &c, &d) || b != signature_AMD_ebx || c != signature_AMD_ecx || !__get_cpuid(1, &a, &b, &c, &d))
        return 0;
    return (a >> 8 & 15) + (a >> 20 & 255) == 0x19; /* family and extended family */
}

#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

unsigned pl_cpu_features(void)
{
    unsigned long first = getauxval(AT_HWCAP), second = getauxval(AT_HWCAP2);
    unsigned features = PL_CPU_NEON;
    if (first >> 20 & 1) /* HWCAP_ASIMDDP */
        features |= PL_CPU_DOTPROD;
    if (second >> 13 & 1) /* HWCAP2_I8MM */
        features |= PL_CPU_I8MM;
    return features;
}

#elif defined(__aarch64__) && defined(__APPLE__)
#include <stddef.h>
#include <sys/sysctl.h>

static int has(const char *name)
{
    int value = 0;
    size_t size = sizeof value;
    return sysctlbyname(name, &value, &size, NULL, 0) == 0 && value;
}

unsigned pl_cpu_features(void)
{
    return PL_CPU_NEON | (has("hw.optional.arm.FEAT_DotProd") ? PL_CPU_DOTPROD : 0) |
           (has("hw.optional.arm.FEAT_I8MM") ? PL_CPU_I8MM : 0);
}

#else
unsigned pl_cpu_features(void) { return 0; }
#endif

#if !defined(__x86_64__)
int pl_cpu_follows_a_stream(void) { return 0; }
#endif
