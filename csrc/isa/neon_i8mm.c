/* The tier neon_i8mm (FEAT_I8MM and FEAT_DotProd). */
#include "isa.h"

#if PL_ARM
PL_TARGET_BEGIN(PL_ARM_I8MM)

#define TIER neon_i8mm

#include "neon_common.h"
#include "neon_sdot.h"

#include "../kernels/all.inc"

PL_TARGET_END
#else
typedef int pl_tier_neon_i8mm_is_empty;
#endif
