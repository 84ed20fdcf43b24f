/* Which instruction sets this CPU and its operating system offer. */
#ifndef PL_CPU_H
#define PL_CPU_H

enum {
    PL_CPU_AVX2 = 1,    /* AVX2, FMA, F16C, and the OS saves the registers */
    PL_CPU_AVXVNNI = 2, /* 256-bit VEX-coded VNNI */
    PL_CPU_AVX512 = 4,  /* F, BW, VL, VNNI */
    PL_CPU_NEON = 8,
    PL_CPU_DOTPROD = 16,
    PL_CPU_I8MM = 32
};

unsigned pl_cpu_features(void);

#endif
