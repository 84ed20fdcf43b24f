/* The tier neon (armv8.0, any 64-bit Arm): dot products by widening multiplication. */
#include "isa.h"

#if PL_ARM
#define TIER neon
#define TOKENS_TILE 4 /* as products take registers of their own */

#include "neon_common.h"

/* Products of int8 fit int16, and so do sums of two: at most 2 * 128 * 127. */
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a)
{
    int8x16_t x = vreinterpretq_s8_s32(w), y = vreinterpretq_s8_s32(a);
    int16x8_t low = vmull_s8(vget_low_s8(x), vget_low_s8(y)), high = vmull_high_s8(x, y);
    return vpadalq_s16(acc, vpaddq_s16(low, high));
}
PL_INLINE vi vi_dot_u(vi acc, vi w, vi a) { return vi_dot_s(acc, w, a); } /* unsigned codes are below 128 */

#include "../kernels/all.inc"
#else
typedef int pl_tier_neon_is_empty;
#endif
