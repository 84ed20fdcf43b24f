/* The tier neon_dotprod (armv8.2 with FEAT_DotProd): dot products by sdot. */
#include "isa.h"

#if PL_ARM
PL_TARGET_BEGIN(PL_ARM_DOTPROD)

#define TIER neon_dotprod

#include "neon_common.h"
#include "neon_sdot.h"

#include "../kernels/integer.inc"

PL_TARGET_END
#else
typedef int pl_tier_neon_dotprod_is_empty;
#endif
