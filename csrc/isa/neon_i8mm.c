/* The tier neon_i8mm (FEAT_I8MM and FEAT_DotProd): several tokens are multiplied by smmla, one by sdot.
 *
 * smmla takes 8 k of two rows and of two tokens and adds to four sums: twice the products of an sdot. Tiles hold two groups
 * zipped for it, so that a register is 2 rows x 8 k; the sums of two tokens are parted again once per sub-block.
 * kernels/README.md counts the instructions of the compiled loops. */
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
PL_INLINE vi vi_load_8_8(const int8_t *p, const int8_t *q) { return vreinterpretq_s32_s8(vcombine_s8(vld1_s8(p), vld1_s8(q))); }
/* sums (row 0, token 0), (0, 1), (1, 0), (1, 1) += 8 k of two rows times 8 k of two tokens */
#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_MATMUL_INT8)
PL_INLINE vi vi_dot_pairs(vi acc, vi w, vi x) /* as sdot in neon_sdot.h */
{
    __asm__("smmla %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(x));
    return acc;
}
#else
PL_INLINE vi vi_dot_pairs(vi acc, vi w, vi x) { return vmmlaq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x)); }
#endif

#include "../kernels/integer.inc"

PL_TARGET_END
#else
typedef int pl_tier_neon_i8mm_is_empty;
#endif
