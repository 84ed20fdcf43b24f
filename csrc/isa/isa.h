/* Which family this file is compiled for, and how a tier opens its target region without compiler flags. */
#ifndef PL_ISA_H
#define PL_ISA_H

#if defined(__x86_64__) || defined(_M_X64)
#define PL_X86 1
#include <immintrin.h>
#else
#define PL_X86 0
#endif

#if defined(__aarch64__) || defined(_M_ARM64)
#define PL_ARM 1
#include <arm_neon.h>
#else
#define PL_ARM 0
#endif

#include "types/blocks.h"
#include "types/codebook.h"
#include "kernels/kernels.h"
#include "exec/residual_blocks.h"
#include "types/quantize_iq.h"
#include <float.h>
#include <limits.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define PL_INLINE static inline __attribute__((always_inline))
#define PL_OUTLINE static __attribute__((noinline)) /* one copy, whoever calls it */
#define PL_PRAGMA(text) _Pragma(#text)
#define PL_UNROLL PL_PRAGMA(GCC unroll 16)

/* The Arm features as each compiler spells them. */
#if defined(__clang__)
#define PL_ARM_DOTPROD "dotprod"
#define PL_ARM_I8MM "dotprod,i8mm"
#else
#define PL_ARM_DOTPROD "arch=armv8.2-a+dotprod"
#define PL_ARM_I8MM "arch=armv8.2-a+dotprod+i8mm"
#endif

#if defined(__clang__)
#define PL_TARGET_BEGIN(features) PL_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define PL_TARGET_END PL_PRAGMA(clang attribute pop)
#else
#define PL_TARGET_BEGIN(features) PL_PRAGMA(GCC push_options) PL_PRAGMA(GCC target(features))
#define PL_TARGET_END PL_PRAGMA(GCC pop_options)
#endif

#endif
