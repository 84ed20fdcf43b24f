/* The table of tensor types. */
#include "types/types.h"
#include "api.h"
#include "types/blocks.h"
#include "types/type_functions.h"

/* ---- float types ---- */

static void float_from_f32(const uint8_t *src, float *dst, int64_t n) { memcpy(dst, src, (size_t)n * sizeof(float)); }

/* pl_f16_to_f32 of many, without branches, in loops that compilers turn into vectors: the bits in their places and a product that
 * moves the exponent, also out of float32's subnormals; infinities and NaN get the bits of theirs. */
static void float_from_f16(const uint8_t *src, float *dst, int64_t n)
{
    enum { AT_ONCE = 32 };
    for (int64_t i = 0; i + AT_ONCE <= n; i += AT_ONCE) {
        uint16_t half[AT_ONCE];
        uint32_t bits[AT_ONCE];
        float value[AT_ONCE];
        memcpy(half, src + 2 * i, sizeof half);
        for (int k = 0; k < AT_ONCE; k++)
            bits[k] = (uint32_t)(half[k] & 0x7fff) << 13;
        memcpy(value, bits, sizeof value);
        for (int k = 0; k < AT_ONCE; k++)
            value[k] *= 0x1p112f;
        memcpy(bits, value, sizeof bits);
        for (int k = 0; k < AT_ONCE; k++) {
            uint32_t magnitude = half[k] & 0x7fff, special = 0u - ((0x7bff - magnitude) >> 31); /* all ones for inf and NaN */
            bits[k] = (bits[k] & ~special) | ((magnitude << 13 | 0x7f800000u) & special) | (uint32_t)(half[k] & 0x8000) << 16;
        }
        memcpy(dst + i, bits, sizeof bits);
    }
    for (int64_t i = n / AT_ONCE * AT_ONCE; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, src + 2 * i, sizeof bits);
        dst[i] = pl_f16_to_f32(bits);
    }
}

static void float_from_bf16(const uint8_t *src, float *dst, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint16_t bits;
        memcpy(&bits, src + 2 * i, sizeof bits);
        dst[i] = pl_bf16_to_f32(bits);
    }
}

/* Panels of floats are [k][16]. They are packed by lines of the cache of each row, which are copied first: rows are often a power
 * of two apart, and then 16 lines are more than the first cache can hold. */
enum { LINE = 64 };

static void pack_lines(uint8_t lines[PL_ROWS][LINE], int size, uint8_t *panel)
{
    pl_row_words w[LINE / 4];
    if (size == 4) {
        pl_take_words(lines, LINE, LINE / 4, panel);
        return;
    }
    pl_take_words(lines, LINE, LINE / 4, w);
    for (int i = 0; i < LINE / 4; i++)
        pl_put_halves(w[i], panel + 64 * i, panel + 64 * i + 32);
}

static void pack_floats(const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, int size, uint8_t *panel)
{
    const int64_t whole = cols * size / LINE * LINE;
    uint8_t lines[PL_ROWS][LINE];
    memset(lines, 0, sizeof lines);
    for (int64_t i = 0; i < whole; i += LINE) {
        for (int r = 0; r < n_rows; r++)
            memcpy(lines[r], src + r * row_bytes + i, LINE);
        pl_prefetch(src + PL_ROWS * (row_bytes + i), PL_ROWS * LINE);
        pack_lines(lines, size, panel + i * PL_ROWS);
    }
    for (int64_t i = whole; i < cols * size; i += size) {
        memset(panel + i * PL_ROWS, 0, (size_t)(PL_ROWS * size));
        for (int r = 0; r < n_rows; r++)
            memcpy(panel + i * PL_ROWS + r * size, src + r * row_bytes + i, (size_t)size);
    }
}

#define PL_FLOAT_TYPE(NAME, name, number, bits) \
    static void pack_##name(const uint8_t *src, int64_t row_bytes, int n_rows, int64_t cols, uint8_t *panel) \
    { \
        pack_floats(src, row_bytes, n_rows, cols, sizeof(bits), panel); \
    }
#include "types/types.def"

/* ---- the table ---- */

#define WRITER_LANES(name) pl_write_##name
#define WRITER_OWN(name) NULL

static const pl_type_info types[] = {
#define PL_FLOAT_TYPE(NAME, lower, number, bits) \
    [number] = {.name = #NAME, \
                .block_elements = 1, \
                .block_bytes = sizeof(bits), \
                .panel_bytes = sizeof(bits) * PL_ROWS, \
                .is_float = 1, \
                .to_float = float_from_##lower, \
                .pack = pack_##lower},
#define PL_QUANTIZED_TYPE(NAME, lower, number, elements, bytes, scale_group, min, panel, codebook, importance, writer) \
    [number] = {.name = #NAME, \
                .block_elements = elements, \
                .block_bytes = bytes, \
                .panel_bytes = PL_PANEL_BYTES_##NAME, \
                .group = scale_group, \
                .has_min = min, \
                .needs_importance = importance, \
                .decode = pl_decode_##lower, \
                .pack = pl_pack_##lower, \
                .write = WRITER_##writer(lower)},
#include "types/types.def"
};

const pl_type_info *pl_type_find(int type)
{
    return type >= 0 && type < (int)(sizeof types / sizeof types[0]) && types[type].name ? &types[type] : NULL;
}

const char *pl_type_name(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? info->name : NULL;
}

int pl_type_block_elements(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? info->block_elements : PL_EINVAL;
}

int pl_type_block_bytes(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? info->block_bytes : PL_EINVAL;
}

int pl_type_group(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? info->group : PL_EINVAL;
}

int pl_type_has_min(int type)
{
    const pl_type_info *info = pl_type_find(type);
    return info ? info->has_min : PL_EINVAL;
}
