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
/* The same with 4 k out of the 16 of a register of activations in every lane of it; `lane` is known when compiled. */
#define DOT_LANES 1
#if defined(__clang__) && __clang_major__ < 16 && !defined(__ARM_FEATURE_DOTPROD)
#define DOT_LANE(n) __asm__("sdot %0.4s, %1.16b, %2.4b[" #n "]" : "+w"(acc) : "w"(w), "w"(x))
#else
#define DOT_LANE(n) acc = vdotq_laneq_s32(acc, vreinterpretq_s8_s32(w), vreinterpretq_s8_s32(x), n)
#endif
PL_INLINE vi vi_dot_lane(vi acc, vi w, vi x, int lane)
{
    switch (lane) {
    case 0: DOT_LANE(0); break;
    case 1: DOT_LANE(1); break;
    case 2: DOT_LANE(2); break;
    default: DOT_LANE(3);
    }
    return acc;
}
