/* The tier neon_i8mm (FEAT_I8MM and FEAT_DotProd): several tokens are multiplied by smmla, one by sdot.
 *
 * smmla takes 8 k of two rows and of two tokens and adds to four sums: twice the products of an sdot. Tiles hold two groups
 * zipped for it, so that a register is 2 rows x 8 k; the sums of two tokens are parted again once per sub-block. The compiled
 * inner loop of Q4_0 (gcc 12 -O2) takes 336 instructions for 32 k x 16 rows x 4 tokens, 64 of them smmla; the one of
 * neon_dotprod takes 536 with 128 sdot, the one of neon (armv8.0) 1157. */
#include "isa.h"

#if PL_ARM
PL_TARGET_BEGIN(PL_ARM_I8MM)

#define TIER neon_i8mm

#include "neon_common.h"
#include "neon_sdot.h"

#define DOT_PAIRS 1
PL_INLINE vi vi_zip_low(vi a, vi b) { return vzip1q_s32(a, b); }  /* rows 0, 1: 4 k of a, then 4 of b */
PL_INLINE vi vi_zip_high(vi a, vi b) { return vzip2q_s32(a, b); } /* rows 2, 3 */
PL_INLINE vi vi_unzip_even(vi a, vi b) { return vuzp1q_s32(a, b); }
PL_INLINE vi vi_unzip_odd(vi a, vi b) { return vuzp2q_s32(a, b); }
PL_INLINE vi vi_set2(int32_t x, int32_t y) { return vzip1q_s32(vdupq_n_s32(x), vdupq_n_s32(y)); } /* x y x y */
PL_INLINE vi vi_load_8_8(const int8_t *p, const int8_t *q) { return vreinterpretq_s32_s8(vcombine_s8(vld1_s8(p), vld1_s8(q))); }
/* sums (row 0, token 0), (0, 1), (1, 0), (1, 1) += 8 k of two rows times 8 k of two tokens */
PL_INLINE vi vi_dot_pairs(vi acc, vi w, vi x)
{
    __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(x)); /* as sdot in neon_sdot.h: every clang has it */
    return acc;
}

#include "../kernels/integer.inc"

PL_TARGET_END
#else
typedef int pl_tier_neon_i8mm_is_empty;
#endif
