/* Which instruction sets this CPU and its operating system offer. */
#ifndef PL_CPU_H
#define PL_CPU_H

enum {
    PL_CPU_AVX2 = 1,    /* AVX2, FMA, F16C, and the OS saves the registers */
    PL_CPU_AVXVNNI = 2, /* 256-bit VEX-coded VNNI */
    PL_CPU_AVX512 = 4,  /* F, BW, VL, VNNI */
    PL_CPU_NEON = 8,
    PL_CPU_DOTPROD = 16,
    PL_CPU_I8MM = 32,
    PL_CPU_VBMI = 64 /* AVX-512 VBMI, and GFNI of any width */
};

unsigned pl_cpu_features(void);

/* Whether the CPU's own prefetching reads one stream at the speed of memory, so that asking for lines takes buffers away from it:
 * AMD's Zen 4 (and Zen 3, whose tier reads several). Measured on those, and on Zen 5, which is not so. */
int pl_cpu_follows_a_stream(void);

#endif
