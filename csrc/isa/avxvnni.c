/* The tier avxvnni (AVX2, FMA, F16C, AVX-VNNI): 256-bit vpdpbusd, for CPUs with VNNI but without AVX-512. */
#include "isa.h"

#if PL_X86
PL_TARGET_BEGIN("avx2,fma,f16c,avxvnni")

#define TIER avxvnni
#define S_BIAS 128 /* vpdpbusd wants unsigned weights: signed codes are stored + 128 */
#define TOKENS_TILE 6 /* 1 panel x 6 tokens: 12 integer sums in 16 registers; the 12 float sums wait in L1 */
#define SMALL_BATCH_TOKENS 6 /* 1 panel x 6 tokens: 12 sums, beside two registers of codes */
#define SMALL_BATCH_STEPS(STEP) STEP(2) STEP(3) STEP(4) STEP(5) STEP(6)
/* More tokens are faster with tiles: of codes that are put together of two parts, and where scales are for 16 k. */
#define SMALL_BATCH_MOST(f) ((((f)->max_code > 15 && !(f)->is_signed) || (f)->scales_per_32 == 2) ? 8 : PL_SMALL_BATCH)
/* Codes that are put together of two parts: of 3 bits, and of 5 and 6. */
#define SMALL_BATCH_IN_ORDER(f, n) \
    ((f)->max_code == 7 ? (n) > 2 : ((f)->max_code == 31 || (f)->max_code == 63) && (n) > 4)

#define KV_WHOLE 1 /* attention: vpdpwssd multiplies two of a lane and adds them to a sum, for which avx2 takes two instructions */
#define OWN_ATTENTION 1
#define PREFERS_INT16 1 /* its parent's, which are faster than floats */

#define vi_dot16_add(acc, a, b) _mm256_dpwssd_avx_epi32(acc, a, b)
#define vi_dot16_sum(acc, a, b) vi_dot16_add(acc, a, b)

#include "x86_256.h"

PL_INLINE vi vi_dot_u(vi acc, vi w, vi a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a) { return _mm256_dpbusd_avx_epi32(acc, w, a); }

#include "../kernels/integer.inc"

PL_TARGET_END
#else
typedef int pl_tier_avxvnni_is_empty;
#endif
