/* The tier avxvnni (AVX2, FMA, F16C, AVX-VNNI): 256-bit vpdpbusd, for CPUs with VNNI but without AVX-512. */
#include "isa.h"

#if PL_X86
PL_TARGET_BEGIN("avx2,fma,f16c,avxvnni")

#define TIER avxvnni
#define S_BIAS 128 /* vpdpbusd wants unsigned weights: signed codes are stored + 128 */

#define PREFERS_INT16 1 /* its parent's, which are faster than floats */

#include "x86_256.h"

PL_INLINE vi vi_dot_u(vi acc, vi w, vi a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }

#include "../kernels/integer.inc"

PL_TARGET_END
#else
typedef int pl_tier_avxvnni_is_empty;
#endif
