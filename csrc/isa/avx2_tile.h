/* The inner loops of products of many tokens on avx2: a decoded panel (matmul_quant_tile.inc) times tiles of 4 tokens. In
 * assembly, since what they cost is decided by where each instruction stands. A core of this tier multiplies in two of its
 * four vector pipes, and an addition takes any; an instruction that waits long for its inputs holds a place in a scheduler
 * meanwhile. So the end of a sub-block (sums widened, converted, times scale) is spread over the first products of the next
 * one, the addresses of scales are made ahead of time, and sub-blocks and tiles are one loop whose only branch is its end: a
 * branch after every 8 sub-blocks is guessed wrong too often. Measured: kernels/README.md.
 *
 * ymm0-7: sums of 4 tokens x 2 registers of rows; 8, 9: codes; 10: activations of one token; 11-15: what is on its way. */

/* Where a tile has what, in bytes (matmul_quant_tile.inc checks it), and a block of activations. */
#define TILE_BYTES 2240
#define TILE_SCALE 512   /* of 32 k or of the first 16, times each factor; */
#define TILE_SECOND 1024 /* those of the other 16. Or of int8 codes: magnitudes, */
#define TILE_START 1536  /* the sum of those of negative codes, */
#define TILE_SIGNS 1664  /* and all bits set where a code is negative */
#define Q8_BYTES 56
#define Q8_STEP 44
#define Q8_PAIRS 48
static_assert(sizeof(pl_q8) == Q8_BYTES && offsetof(pl_q8, step) == Q8_STEP &&
                  offsetof(pl_q8, pair_sum) == Q8_PAIRS,
              "blocks lie as loops by hand read them");
#define TILE_STR2(number) #number
#define TILE_STR(number) TILE_STR2(number)

static const _Alignas(32) int16_t tile_ones[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};

/* Memory at `offset` in the block of a token. */
#define AT0(offset) TILE_STR(offset) "(%[a])"
#define AT1(offset) TILE_STR(offset) "(%[a],%[stride])"
#define AT2(offset) TILE_STR(offset) "(%[a],%[stride],2)"
#define AT3(offset) TILE_STR(offset) "(%[a],%[stride3])"

#define TILE_CODES(g) \
    "vmovdqa 64*" #g "(%[w]),%%ymm8\n" \
    "vmovdqa 64*" #g "+32(%[w]),%%ymm9\n"
#define TILE_INPUT(AT, g) "vpbroadcastd " AT(4 * g) ",%%ymm10\n"
/* Products of unsigned codes, sums of pairs in int16: the first ones of a run, and those that are added. */
#define TILE_FIRST(AT, g, S, T) \
    TILE_INPUT(AT, g) \
    "vpmaddubsw %%ymm10,%%ymm8,%%ymm" #S "\n" \
    "vpmaddubsw %%ymm10,%%ymm9,%%ymm" #T "\n"
#define TILE_MORE(AT, g, S, T) \
    TILE_INPUT(AT, g) \
    "vpmaddubsw %%ymm10,%%ymm8,%%ymm12\n" \
    "vpmaddubsw %%ymm10,%%ymm9,%%ymm13\n" \
    "vpaddw %%ymm12,%%ymm" #S ",%%ymm" #S "\n" \
    "vpaddw %%ymm13,%%ymm" #T ",%%ymm" #T "\n"
/* The same of int8 codes, each product widened. The tile has w as |w| and all bits set where w < 0: a times w is |w| times the
 * bits of a, inverted there, and |w| more there. */
#define TILE_SIGNS_OF(g) \
    "vmovdqa " TILE_STR(TILE_SECOND) "+64*" #g "(%[w]),%%ymm8\n" \
    "vmovdqa " TILE_STR(TILE_SECOND) "+64*" #g "+32(%[w]),%%ymm9\n" \
    "vmovdqa " TILE_STR(TILE_SIGNS) "+64*" #g "(%[w]),%%ymm14\n" \
    "vmovdqa " TILE_STR(TILE_SIGNS) "+64*" #g "+32(%[w]),%%ymm15\n"
#define TILE_SIGNED(AT, g, S, T, ONES) \
    TILE_INPUT(AT, g) \
    "vpxor %%ymm14,%%ymm10,%%ymm" #S "\n" \
    "vpxor %%ymm15,%%ymm10,%%ymm" #T "\n" \
    "vpmaddubsw %%ymm" #S ",%%ymm8,%%ymm" #S "\n" \
    "vpmaddubsw %%ymm" #T ",%%ymm9,%%ymm" #T "\n" \
    "vpmaddwd " ONES ",%%ymm" #S ",%%ymm" #S "\n" \
    "vpmaddwd " ONES ",%%ymm" #T ",%%ymm" #T "\n"
#define TILE_SIGNED_START(S, T) \
    "vpaddd " TILE_STR(TILE_START) "(%[w]),%%ymm" #S ",%%ymm" #S "\n" \
    "vpaddd " TILE_STR(TILE_START) "+32(%[w]),%%ymm" #T ",%%ymm" #T "\n"
#define TILE_SIGNED_MORE(AT, g, S, T) \
    TILE_SIGNED(AT, g, 12, 13, "%%ymm11") \
    "vpaddd %%ymm12,%%ymm" #S ",%%ymm" #S "\n" \
    "vpaddd %%ymm13,%%ymm" #T ",%%ymm" #T "\n"

/* int32 of the sums S, T. */
#define TILE_WIDEN(S, T) \
    "vpmaddwd %[ones],%%ymm" #S ",%%ymm" #S "\n" \
    "vpmaddwd %[ones],%%ymm" #T ",%%ymm" #T "\n"
/* The int32 sums of a half are put aside, and added to those of the other half. */
#define TILE_PUT_ASIDE(t, X, Y) \
    "vmovdqa %%ymm" #X ",64*" #t "(%[aside])\n" \
    "vmovdqa %%ymm" #Y ",64*" #t "+32(%[aside])\n"
#define TILE_ADD_ASIDE(t, S, T) \
    "vpaddd 64*" #t "(%[aside]),%%ymm" #S ",%%ymm" #S "\n" \
    "vpaddd 64*" #t "+32(%[aside]),%%ymm" #T ",%%ymm" #T "\n"
#define TILE_CONVERT(S, T, X, Y) \
    "vcvtdq2ps %%ymm" #S ",%%ymm" #X "\n" \
    "vcvtdq2ps %%ymm" #T ",%%ymm" #Y "\n"
/* The sums of token t, at TO, += X, Y times scales out of TABLE. */
#define TILE_SCALED(t, X, Y, TABLE, TO) \
    "vmovaps " TABLE "(%[step" #t "]),%%ymm11\n" \
    "vfmadd213ps 64*" #t "(" TO "),%%ymm11,%%ymm" #X "\n" \
    "vmovaps " TABLE "+32(%[step" #t "]),%%ymm11\n" \
    "vfmadd213ps 64*" #t "+32(" TO "),%%ymm11,%%ymm" #Y "\n" \
    "vmovaps %%ymm" #X ",64*" #t "(" TO ")\n" \
    "vmovaps %%ymm" #Y ",64*" #t "+32(" TO ")\n"
#define TILE_SCALED_BEFORE(t, X, Y) TILE_SCALED(t, X, Y, TILE_STR(TILE_SCALE), "%[before]") /* of the sub-block before this one */
/* Where each token's scales are. */
#define TILE_STEP(AT, t) "movzbl " AT(Q8_STEP) ",%k[step" #t "]\n"
#define TILE_STEP_ADDRESS(t) \
    "shl $6,%[step" #t "]\n" \
    "add %[w],%[step" #t "]\n"
#define TILE_STEPS \
    TILE_STEP(AT0, 0) TILE_STEP(AT1, 1) TILE_STEP(AT2, 2) TILE_STEP(AT3, 3) \
    TILE_STEP_ADDRESS(0) TILE_STEP_ADDRESS(1) TILE_STEP_ADDRESS(2) TILE_STEP_ADDRESS(3)

/* MACRO(AT, g, S, T) of each of 4 tokens. */
#define TILE_TOKENS(MACRO, g) MACRO(AT0, g, 0, 1) MACRO(AT1, g, 2, 3) MACRO(AT2, g, 4, 5) MACRO(AT3, g, 6, 7)
#define TILE_GROUP(g) TILE_CODES(g) TILE_TOKENS(TILE_MORE, g)

/* BEGIN: group 0 of the first sub-block; NEXT: group 0 of another, and what is left to do for the one before it; BODY: groups 1
 * to 7; END: what is left to do for the last one. After the `subs` sub-blocks of a tile comes the next tile's first. */
#define TILE_LOOP(BEGIN, NEXT, BODY, END) \
    const uint8_t *const first = w; \
    const int64_t next_tile = (4 * stride - subs) * (int64_t)sizeof(pl_q8), stride3 = 3 * stride * (int64_t)sizeof(pl_q8); \
    int64_t blocks = tiles * subs, left = subs, step0, step1, step2, step3, other; \
    float *before; \
    _Alignas(32) int32_t aside[4 * PL_ROWS]; \
    stride *= (int64_t)sizeof(pl_q8); \
    __asm__ volatile(BEGIN "jmp 2f\n" \
                           ".p2align 5\n" \
                           "1:\n" NEXT "2:\n" BODY "add $" TILE_STR(TILE_BYTES) ",%[w]\n" \
                           "add $" TILE_STR(Q8_BYTES) ",%[a]\n" \
                           "mov %[sums],%[before]\n" \
                           "mov %[next_tile],%[other]\n" \
                           "add %[a],%[other]\n" \
                           "dec %[left]\n" \
                           "cmovz %[subs],%[left]\n" \
                           "cmovz %[first],%[w]\n" \
                           "cmovz %[other],%[a]\n" \
                           "lea 256(%[before]),%[other]\n" \
                           "cmovz %[other],%[sums]\n" \
                           "decq %[blocks]\n" \
                           "jnz 1b\n" END \
                     : [w] "+r"(w), [a] "+r"(a), [left] "+r"(left), [blocks] "+m"(blocks), [sums] "+r"(sums), \
                       [before] "=&r"(before), [other] "=&r"(other), [step0] "=&r"(step0), [step1] "=&r"(step1), \
                       [step2] "=&r"(step2), [step3] "=&r"(step3) \
                     : [stride] "r"(stride), [stride3] "r"(stride3), [subs] "m"(subs), [first] "m"(first), \
                       [next_tile] "m"(next_tile), [aside] "r"(aside), [ones] "m"(tile_ones) \
                     : "memory", "cc", "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", \
                       "ymm11", "ymm12", "ymm13", "ymm14", "ymm15")
/* Sanitizers would keep the registers for themselves. */
#define TILE_FUNCTION PL_OUTLINE __attribute__((no_sanitize("address", "undefined"))) void
#define TILE_ARGUMENTS const uint8_t *w, int64_t subs, const pl_q8 *a, int64_t stride, int64_t tiles, float *sums

/* ---- codes up to 15: 8 groups are added up before they are widened; up to 31: 4 groups ---- */

#define TILE_NEXT(AT, t, S, T, X, Y) TILE_CONVERT(S, T, X, Y) TILE_FIRST(AT, 0, S, T)
#define TILE_NEXT_TOKENS \
    TILE_CODES(0) \
    TILE_NEXT(AT0, 0, 0, 1, 12, 13) TILE_NEXT(AT1, 1, 2, 3, 14, 15) TILE_SCALED_BEFORE(0, 12, 13) TILE_NEXT(AT2, 2, 4, 5, 12, 13) \
        TILE_SCALED_BEFORE(1, 14, 15) TILE_NEXT(AT3, 3, 6, 7, 14, 15) TILE_SCALED_BEFORE(2, 12, 13) TILE_SCALED_BEFORE(3, 14, 15)
#define TILE_END(t, S, T) TILE_CONVERT(S, T, S, T) TILE_SCALED_BEFORE(t, S, T)
#define TILE_END_TOKENS TILE_END(0, 0, 1) TILE_END(1, 2, 3) TILE_END(2, 4, 5) TILE_END(3, 6, 7)
#define TILE_LAST(AT, g, S, T) TILE_MORE(AT, g, S, T) TILE_WIDEN(S, T)
TILE_FUNCTION tile_15(TILE_ARGUMENTS)
{
    TILE_LOOP(TILE_CODES(0) TILE_TOKENS(TILE_FIRST, 0), TILE_NEXT_TOKENS,
              TILE_GROUP(1) TILE_GROUP(2) TILE_GROUP(3) TILE_STEPS TILE_GROUP(4) TILE_GROUP(5) TILE_GROUP(6) TILE_CODES(7)
                  TILE_TOKENS(TILE_LAST, 7),
              TILE_END_TOKENS);
}

/* The same with whole scales (kernels/matmul_quant.inc): sums are widened by them, and stay integers. */
#define TILE_WHOLE_WIDEN(t, S, T, X, Y, TABLE) \
    "vpmaddwd " TILE_STR(TABLE) "(%[step" #t "]),%%ymm" #S ",%%ymm" #X "\n" \
    "vpmaddwd " TILE_STR(TABLE) "+32(%[step" #t "]),%%ymm" #T ",%%ymm" #Y "\n"
#define TILE_WHOLE_ADD(t, X, Y, TO) \
    "vpaddd 64*" #t "(" TO "),%%ymm" #X ",%%ymm" #X "\n" \
    "vpaddd 64*" #t "+32(" TO "),%%ymm" #Y ",%%ymm" #Y "\n" \
    "vmovdqa %%ymm" #X ",64*" #t "(" TO ")\n" \
    "vmovdqa %%ymm" #Y ",64*" #t "+32(" TO ")\n"
#define TILE_WHOLE_NEXT(AT, t, S, T, X, Y) TILE_WHOLE_WIDEN(t, S, T, X, Y, TILE_SCALE) TILE_FIRST(AT, 0, S, T)
#define TILE_WHOLE_NEXT_TOKENS \
    TILE_CODES(0) \
    TILE_WHOLE_NEXT(AT0, 0, 0, 1, 12, 13) TILE_WHOLE_NEXT(AT1, 1, 2, 3, 14, 15) TILE_WHOLE_ADD(0, 12, 13, "%[before]") \
        TILE_WHOLE_NEXT(AT2, 2, 4, 5, 12, 13) TILE_WHOLE_ADD(1, 14, 15, "%[before]") TILE_WHOLE_NEXT(AT3, 3, 6, 7, 14, 15) \
            TILE_WHOLE_ADD(2, 12, 13, "%[before]") TILE_WHOLE_ADD(3, 14, 15, "%[before]")
#define TILE_WHOLE_END(t, S, T) TILE_WHOLE_WIDEN(t, S, T, S, T, TILE_SCALE) TILE_WHOLE_ADD(t, S, T, "%[before]")
#define TILE_WHOLE_END_TOKENS TILE_WHOLE_END(0, 0, 1) TILE_WHOLE_END(1, 2, 3) TILE_WHOLE_END(2, 4, 5) TILE_WHOLE_END(3, 6, 7)
TILE_FUNCTION tile_whole_15(TILE_ARGUMENTS)
{
    TILE_LOOP(TILE_CODES(0) TILE_TOKENS(TILE_FIRST, 0), TILE_WHOLE_NEXT_TOKENS,
              TILE_GROUP(1) TILE_GROUP(2) TILE_GROUP(3) TILE_STEPS TILE_GROUP(4) TILE_GROUP(5) TILE_GROUP(6) TILE_GROUP(7),
              TILE_WHOLE_END_TOKENS);
}

#define TILE_WHOLE_HALF(AT, t, S, T, X, Y) \
    TILE_WHOLE_WIDEN(t, S, T, X, Y, TILE_SCALE) TILE_FIRST(AT, 4, S, T) TILE_WHOLE_ADD(t, X, Y, "%[sums]")
TILE_FUNCTION tile_whole_31(TILE_ARGUMENTS)
{
    TILE_LOOP(TILE_CODES(0) TILE_TOKENS(TILE_FIRST, 0), TILE_WHOLE_NEXT_TOKENS,
              TILE_GROUP(1) TILE_GROUP(2) TILE_STEPS TILE_GROUP(3) TILE_CODES(4) TILE_WHOLE_HALF(AT0, 0, 0, 1, 12, 13)
                  TILE_WHOLE_HALF(AT1, 1, 2, 3, 14, 15) TILE_WHOLE_HALF(AT2, 2, 4, 5, 12, 13)
                      TILE_WHOLE_HALF(AT3, 3, 6, 7, 14, 15) TILE_GROUP(5) TILE_GROUP(6) TILE_GROUP(7),
              TILE_WHOLE_END_TOKENS);
}

#define TILE_HALF_31(AT, t, S, T, X, Y) \
    "vpmaddwd %[ones],%%ymm" #S ",%%ymm" #X "\n" \
    "vpmaddwd %[ones],%%ymm" #T ",%%ymm" #Y "\n" TILE_FIRST(AT, 4, S, T) TILE_PUT_ASIDE(t, X, Y)
#define TILE_LAST_31(AT, t, S, T) TILE_LAST(AT, 7, S, T) TILE_ADD_ASIDE(t, S, T)
TILE_FUNCTION tile_31(TILE_ARGUMENTS)
{
    TILE_LOOP(TILE_CODES(0) TILE_TOKENS(TILE_FIRST, 0), TILE_NEXT_TOKENS,
              TILE_GROUP(1) TILE_GROUP(2) TILE_GROUP(3) TILE_CODES(4) TILE_HALF_31(AT0, 0, 0, 1, 12, 13)
                  TILE_HALF_31(AT1, 1, 2, 3, 14, 15) TILE_HALF_31(AT2, 2, 4, 5, 12, 13) TILE_HALF_31(AT3, 3, 6, 7, 14, 15)
                      TILE_STEPS TILE_GROUP(5) TILE_GROUP(6) TILE_CODES(7) TILE_LAST_31(AT0, 0, 0, 1) TILE_LAST_31(AT1, 1, 2, 3)
                          TILE_LAST_31(AT2, 2, 4, 5) TILE_LAST_31(AT3, 3, 6, 7),
              TILE_END_TOKENS);
}

/* ---- int8 codes ---- */

#define TILE_BEGIN_SIGNED(AT, g, S, T) TILE_SIGNED(AT, g, S, T, "%[ones]") TILE_SIGNED_START(S, T)
#define TILE_NEXT_SIGNED(AT, t, S, T) \
    TILE_CONVERT(S, T, 12, 13) TILE_BEGIN_SIGNED(AT, 0, S, T) TILE_SCALED_BEFORE(t, 12, 13)
#define TILE_GROUP_SIGNED(g) TILE_SIGNS_OF(g) TILE_TOKENS(TILE_SIGNED_MORE, g)
TILE_FUNCTION tile_signed(TILE_ARGUMENTS)
{
    TILE_LOOP(TILE_SIGNS_OF(0) TILE_TOKENS(TILE_BEGIN_SIGNED, 0),
              TILE_SIGNS_OF(0) TILE_NEXT_SIGNED(AT0, 0, 0, 1) TILE_NEXT_SIGNED(AT1, 1, 2, 3) TILE_NEXT_SIGNED(AT2, 2, 4, 5)
                  TILE_NEXT_SIGNED(AT3, 3, 6, 7),
              "vmovdqa %[ones],%%ymm11\n" TILE_GROUP_SIGNED(1) TILE_GROUP_SIGNED(2) TILE_GROUP_SIGNED(3) TILE_STEPS
                  TILE_GROUP_SIGNED(4) TILE_GROUP_SIGNED(5) TILE_GROUP_SIGNED(6) TILE_GROUP_SIGNED(7),
              TILE_END_TOKENS);
}

/* ---- codes up to 63 that stand for -32 ... 31, a scale for 16 k ---- */

/* The sum of 4 groups needs more than int16, but less 32 times the sums of pairs of activations it is at most 32 * 127 * 8: what
 * wraps round on the way does not matter. */
#define TILE_START_63(AT, g, S, T, pairs) \
    TILE_FIRST(AT, g, S, T) \
    "vpbroadcastd " AT(Q8_PAIRS + pairs) ",%%ymm11\n" \
    "vpsllw $5,%%ymm11,%%ymm11\n" \
    "vpsubw %%ymm11,%%ymm" #S ",%%ymm" #S "\n" \
    "vpsubw %%ymm11,%%ymm" #T ",%%ymm" #T "\n"
#define TILE_BEGIN_63(AT, g, S, T) TILE_START_63(AT, g, S, T, 0)
#define TILE_NEXT_63(AT, t, S, T, X, Y) \
    TILE_WHOLE_WIDEN(t, S, T, X, Y, TILE_SECOND) TILE_START_63(AT, 0, S, T, 0) TILE_WHOLE_ADD(t, X, Y, "%[before]")
#define TILE_HALF_63(AT, t, S, T, X, Y) \
    TILE_WHOLE_WIDEN(t, S, T, X, Y, TILE_SCALE) TILE_START_63(AT, 4, S, T, 4) TILE_WHOLE_ADD(t, X, Y, "%[sums]")
#define TILE_END_63(t, S, T) TILE_WHOLE_WIDEN(t, S, T, S, T, TILE_SECOND) TILE_WHOLE_ADD(t, S, T, "%[before]")
TILE_FUNCTION tile_whole_63(TILE_ARGUMENTS)
{
    TILE_LOOP(TILE_CODES(0) TILE_TOKENS(TILE_BEGIN_63, 0),
              TILE_CODES(0) TILE_NEXT_63(AT0, 0, 0, 1, 12, 13) TILE_NEXT_63(AT1, 1, 2, 3, 14, 15)
                  TILE_NEXT_63(AT2, 2, 4, 5, 12, 13) TILE_NEXT_63(AT3, 3, 6, 7, 14, 15),
              TILE_GROUP(1) TILE_STEPS TILE_GROUP(2) TILE_GROUP(3) TILE_CODES(4)
                  TILE_HALF_63(AT0, 0, 0, 1, 12, 13) TILE_HALF_63(AT1, 1, 2, 3, 14, 15) TILE_HALF_63(AT2, 2, 4, 5, 12, 13)
                      TILE_HALF_63(AT3, 3, 6, 7, 14, 15) TILE_GROUP(5) TILE_GROUP(6) TILE_GROUP(7),
              TILE_END_63(0, 0, 1) TILE_END_63(1, 2, 3) TILE_END_63(2, 4, 5) TILE_END_63(3, 6, 7));
}

/* Which tiles there is a loop for: by the largest code, and scales for 32 k. Where codes have no offsets, but a zero to take away,
 * the compiler's loops are as fast. */
PL_INLINE int has_hand_tile(const int is_signed, const int max_code, const int scales_per_32, const int has_offsets)
{
    return scales_per_32 == 2 ? max_code == 63 : is_signed || (max_code <= 31 && has_offsets);
}

/* sums (tiles * 4 tokens, 16 rows; 32-byte aligned; int32 where has_whole) = `subs` sub-blocks from w on times the blocks at a,
 * those of tokens `stride` blocks apart. */
PL_INLINE void hand_tiles(const int is_signed, const int max_code, const int has_whole, const void *w, int64_t subs, const pl_q8 *a, int64_t stride,
                          int64_t tiles, float *sums)
{
    vf zero = vf_zero();
    __asm__("" : "+x"(zero)); /* gcc would write zeros by rep stos, which takes longer than half a tile */
    for (int64_t i = 0; i < tiles * 4 * PL_ROWS; i += VL)
        vf_store(sums + i, zero);
    if (max_code == 63)
        tile_whole_63(w, subs, a, stride, tiles, sums);
    else if (is_signed)
        tile_signed(w, subs, a, stride, tiles, sums);
    else if (has_whole && max_code <= 15)
        tile_whole_15(w, subs, a, stride, tiles, sums);
    else if (has_whole)
        tile_whole_31(w, subs, a, stride, tiles, sums);
    else if (max_code <= 15)
        tile_15(w, subs, a, stride, tiles, sums);
    else
        tile_31(w, subs, a, stride, tiles, sums);
}
