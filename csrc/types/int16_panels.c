/* Panels of int16 (panel.h): any type's weights, each row's 32 k rounded to 13 bits of the largest of them. */
#include "api.h"
#include "types/panel.h"
#include "types/types.h"
#include <assert.h>
#include <math.h>
#include <string.h>

static_assert(PL_INT16_WEIGHTS == PL_INT16, "one number for both");

#define TINY 1e-30f /* below this a block is zero: the factor would overflow */

/* The bits of the largest magnitude, which are in the order of the numbers. */
static int32_t largest_of(const float *w)
{
    int32_t bits[32], most = 0;
    memcpy(bits, w, sizeof bits);
    for (int k = 0; k < 32; k++) {
        int32_t size = bits[k] & 0x7fffffff;
        most = size > most ? size : most;
    }
    return most;
}

/* 32 weights of row r. Infinities and NaN make the scale, and so the results, NaN. */
static void pack_block(const float *w, int r, uint8_t *block)
{
    const float magic = 0x1.8p23f; /* what is added to it is rounded to a whole number, which the low bits hold */
    const int32_t bits = largest_of(w);
    float most, scale, inverse = 0.0f, rounded[32];
    uint32_t code[32];
    memcpy(&most, &bits, sizeof most);
    scale = bits >= 0x7f800000 ? NAN : most >= TINY ? most / PL_INT16_CODE : 0.0f;
    if (scale > 0.0f)
        inverse = PL_INT16_CODE / most;
    for (int k = 0; k < 32; k++)
        rounded[k] = w[k] * inverse + magic;
    memcpy(code, rounded, sizeof code);
    for (int k = 0; k < 32 && inverse == 0.0f; k++)
        code[k] = 0;
    memcpy(block + r * (int)sizeof scale, &scale, sizeof scale);
    uint8_t *pairs = block + PL_ROWS * sizeof scale + r * (int)sizeof code[0];
    for (int k = 0; k < 32; k += 2, pairs += PL_ROWS * sizeof code[0]) {
        const uint32_t pair = (code[k] & 0xffff) | code[k + 1] << 16;
        memcpy(pairs, &pair, sizeof pair);
    }
}

void pl_pack_int16(int type, const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *dst)
{
    const pl_type_info *info = pl_type_find(type);
    float w[PL_CHUNK];
    for (int r = 0; r < n_rows; r++)
        for (int64_t k = 0; k < cols; k += PL_CHUNK) {
            const int64_t n = cols - k < PL_CHUNK ? cols - k : PL_CHUNK;
            pl_dequantize(type, src + r * row_bytes + k / info->block_elements * info->block_bytes, w, n);
            for (int64_t i = 0; i < n; i += 32)
                pack_block(w + i, r, dst + (k + i) / 32 * PL_INT16_BLOCK);
        }
}
