/* Panels of int16 (panel.h): any type's weights, each row's 32 k rounded to 13 bits of the largest of them. */
#include "api.h"
#include "types/panel.h"
#include "types/types.h"
#include <assert.h>
#include <math.h>
#include <string.h>

static_assert(PL_INT16_WEIGHTS == PL_INT16, "one number for both");

#define TINY 1e-30f /* below this a block is zero: the factor would overflow */

/* 32 weights of row r. */
static void pack_block(const float *w, int r, uint8_t *block)
{
    const float magic = 0x1.8p23f; /* what is added to it is rounded to a whole number, which the low bits hold */
    float most = 0, check = 0;
    for (int k = 0; k < 32; k++) {
        float size = fabsf(w[k]);
        most = size > most ? size : most;
        check += w[k] * 0.0f;
    }
    float scale = most / PL_INT16_CODE, inverse = most >= TINY ? PL_INT16_CODE / most : 0.0f;
    if (check != 0.0f) { /* infinities and NaN: so are the results */
        scale = NAN;
        inverse = 0.0f;
    } else if (inverse == 0.0f) {
        scale = 0.0f;
    }
    memcpy(block + r * (int)sizeof scale, &scale, sizeof scale);
    uint8_t *codes = block + PL_ROWS * sizeof scale + r * (int)sizeof(uint32_t);
    for (int k = 0; k < 32; k += 2, codes += PL_ROWS * sizeof(uint32_t)) {
        float pair[2] = {inverse == 0.0f ? magic : w[k] * inverse + magic, inverse == 0.0f ? magic : w[k + 1] * inverse + magic};
        uint32_t bits[2];
        memcpy(bits, pair, sizeof bits);
        bits[0] = (bits[0] & 0xffff) | bits[1] << 16;
        memcpy(codes, bits, sizeof bits[0]);
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
