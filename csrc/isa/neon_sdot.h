/* Dot products of the Arm tiers with FEAT_DotProd: four int8 products added to each int32 lane by one instruction. */
#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_DOTPROD)
/* These versions of clang declare vdotq_s32 for whole files with -march only, not for a target region. */
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a)
{
    __asm__("sdot %0.4s, %1.16b, %2.16b" : "+w"(acc) : "w"(w), "w"(a));
    return acc;
}
#else
PL_INLINE vi vi_dot_s(vi acc, vi w, vi a) { return vdotq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(a)); }
#endif
PL_INLINE vi vi_dot_u(vi acc, vi w, vi a) { return vi_dot_s(acc, w, a); } /* unsigned codes are below 128 */
