/* Packed weights and activations: the two layouts that every matrix product reads.
 *
 * A PANEL is 16 rows of a weight matrix, interleaved so that one vector register holds the same 4 consecutive k of
 * many rows: byte (r * 4 + j) of a 64-byte group is row r, k + j. A dot-product instruction (vpdpbusd, sdot) then adds
 * 4 k of every row at once and no horizontal sum is ever needed. The same 64 bytes are one AVX-512 register, two AVX2
 * or four NEON registers, so one layout serves every tier and packing is plain C.
 *
 * A panel is a run of panel blocks along k (32 or 256 k each); the matrix is its panels one after the other. Inside a
 * block, 32 k form a sub-block of 8 groups g (k = 4 g + j):
 *   4-bit codes:  256 bytes, byte v * 64 + i holds group v in its low nibble and group v + 4 in its high one (v = 0..3)
 *   2-bit codes:  128 bytes, byte h * 64 + i holds groups 2 f + h in bits 2 f, 2 f + 1 (h = 0..1, f = 0..3)
 *   1-bit codes:   64 bytes, bit i of the little-endian 64-bit word g is the bit of group g
 *   8-bit codes:  512 bytes, group after group
 * Scales come first in the block, 16 of a kind side by side, one per row. 6-bit scales of the K types are stored as
 * bytes, and IQ1_M's of 3 bits as nibbles; everything else keeps the file's size.
 * The panels of the codebook types (IQ1_S … IQ3_S) and of TQ1_0 are described in codebook_types.c and ternary_types.c.
 */
#ifndef PL_PANEL_H
#define PL_PANEL_H
#include <stddef.h>
#include <stdint.h>

#define PL_ROWS 16   /* rows of a panel */
#define PL_CHUNK 256 /* k that a GEMM tile spans; float panels add up in chunks of this many k */
#define PL_CHUNK_BLOCKS (PL_CHUNK / 32)

/* 32 activations as int8. The scales of the (up to 8) blocks of a chunk of 256 are one number, the chunk's, times a factor
 * out of a short list: tiles of weights hold their scales times each factor, so that a product of many tokens spends one
 * multiply-add on a block, and multiplies by the chunk's scale at its end. A scale of its own for each block costs a
 * multiplication more in the inner loop; the list costs nothing that can be measured.
 * A block in which one value holds most of the energy leaves the other 31 few of its 8 bits; such a block has a
 * residual block beside it for that value alone, whose products are those of a single k. It counts as the sum of both. Where all
 * blocks have one (--precision exact), it has all values, and the block takes what it has rounded away. Products of several tokens
 * read residual blocks side by side (residual_blocks.h). */
typedef struct {
    int8_t q[32]; /* round(x / (scale * factor)), in [-127, 127] */
    union {
        float scale;       /* the chunk's, in its first block; a residual block has its own */
        int16_t sum_x8[2]; /* in blocks 1, 3, 5 and 7: 8 * s of the block before and of this one, rounded */
    };
    float s;                  /* factor * (sum[0] + sum[1]) */
    int16_t sum[2];           /* sums of q[0..15] and q[16..31] */
    uint8_t step;             /* the block's factor is pl_q8_factor[step] */
    uint8_t residual_mask;    /* bit b: block b of this chunk has a residual block. Of one: 1 + the k of its only code, or 0 */
    uint16_t residual_offset; /* the residual block is this many blocks further on, in every row of a buffer; 0: there is none */
    int16_t pair_sum[2][2];   /* of each half: of all q[4 g] and q[4 g + 1], of all q[4 g + 2] and q[4 g + 3] (avx2 alone) */
} pl_q8;

/* Near 2^(-0.4 step), and whole numbers over PL_Q8_WHOLE: times integer scales they stay integers. */
#define PL_Q8_STEPS 8
#define PL_Q8_WHOLE 32
extern const float pl_q8_factor[PL_Q8_STEPS];
extern const int16_t pl_q8_whole[PL_Q8_STEPS][2]; /* those whole numbers, twice */

/* A block gets a residual block when max^2 > this times the sum of squares: half the error of the logits for a twentieth (1B)
 * to a tenth (135M) of a prompt's time (kernels/README.md has tables of thresholds). */
#define PL_Q8_DOMINANT 0.65f

/* Added to a type's number: its weights in panels of int16, which rows of float32 are multiplied with in 16 bits. 32 k of a panel are
 * 16 float scales and then, for each pair of k, the pairs of 16 rows; codes are at most PL_INT16_CODE, inputs PL_INT16_INPUT, so that
 * 32 products fit in int32. */
#define PL_INT16 64
#define PL_INT16_BLOCK (PL_ROWS * 4 + 32 * PL_ROWS * 2)
#define PL_INT16_PANELS 16 /* that are multiplied with inputs which were rounded once */
#define PL_INT16_CODE 4095.0f
#define PL_INT16_INPUT 16383.0f
void pl_pack_int16(int type, const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *dst);

/* Bytes of a 16-row panel block of `type`, and the k that it spans; 0 when the type has no panel form. */
int64_t pl_panel_block_bytes(int type);
int64_t pl_panel_block_k(int type);
int pl_panel_is_float(int type); /* it multiplies rows of float32: F32, F16, BF16, from [k][16] panels, and panels of int16 */

/* Packs up to 16 rows (n_rows of them real, the rest zero) of `cols` elements; row r starts at src + r * row_bytes. */
void pl_pack_panel(int type, const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *dst);

#endif
