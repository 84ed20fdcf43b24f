/* The codebooks of the IQ types, given once at run time (see pyllamacpu/model/codebooks.py) and then read only. */
#include "types/codebook.h"
#include "types/codebook_index.h"

#include <string.h>

#include "api.h"
#include "types/quantize_iq.h"

#define BEFORE 64 /* bytes; a cache line, so that values begin one */
#define PL_CODEBOOK(NAME, name, entries, dims, ...) \
    static int8_t name##_values[(entries) * (dims)]; \
    static _Alignas(64) uint8_t name##_bytes[BEFORE + (entries) * (dims) + 16]; \
    static _Alignas(64) uint16_t name##_codes[entries]; \
    static uint8_t name##_levels[16]; \
    static _Alignas(64) uint8_t name##_planes[2 * (entries)], name##_plane_values[4][64];
#include "types/types.def"

/* One codebook: its row of types.def, its values as given, and the forms of codebook.h. */
static struct codebook {
    int dims;
    int8_t low, high;
    int n;
    int8_t *values;
    uint8_t *bytes;
    uint16_t *codes;
    uint8_t *levels;
    uint8_t *planes;
    uint8_t (*plane_values)[64];
    pl_codebook forms;
    int ready;
} codebooks[PL_CODEBOOK_COUNT] = {
#define PL_CODEBOOK(NAME, name, entries, dims, low, high, ...) \
    {dims,         low,           high,          (entries) * (dims),  name##_values, name##_bytes + BEFORE, \
     name##_codes, name##_levels, name##_planes, name##_plane_values, {0},           0},
#include "types/types.def"
};

static struct codebook *find(int type)
{
    int index = pl_codebook_index(type);
    return index == PL_CODEBOOK_NONE ? NULL : &codebooks[index];
}

const int8_t *pl_codebook_values(int type)
{
    const struct codebook *book = find(type);
    return book && book->ready ? book->values : NULL;
}

const pl_codebook *pl_codebook_of(int type)
{
    const struct codebook *book = find(type);
    return book && book->ready ? &book->forms : NULL;
}

int pl_codebook_missing(int type)
{
    const struct codebook *book = find(type);
    return book && !book->ready ? book->n : 0;
}

/* The bit of an entry's 16 at which the code of value j starts. */
static int code_at(int dims, int j) { return 8 * (j % 2) + (dims == 8 ? 2 : 4) * (j / 2); }

/* A code as the planes have it: of half an entry's 4 values as it is, of its 2 with bit h free. */
static int plane_code(int half, int h, int code) { return half == 4 ? code : h ? (code & 1) | (code & 6) << 1 : code << 1; }

/* The kernels' forms of one value; 0 when there are more different values than codes: 4 for 8 to an entry, else 8. */
static int add_value(struct codebook *book, int i, uint8_t byte, int *n_levels)
{
    int code = 0, j = i % book->dims;
    while (code < *n_levels && book->levels[code] != byte)
        code++;
    if (code == *n_levels) {
        if (code == (book->dims == 8 ? 4 : 8))
            return 0;
        book->levels[(*n_levels)++] = byte;
    }
    uint16_t *codes = &book->codes[i / book->dims];
    *codes = (uint16_t)((j == 0 ? 0 : *codes) | code << code_at(book->dims, j));
    const int half = book->dims / 2, h = j / half, entry = i / book->dims;
    uint8_t *plane = &book->planes[entry / 128 * 256 + 128 * h + entry % 128];
    *plane = (uint8_t)((j % half == 0 ? 0 : *plane) | plane_code(half, h, code) << (8 / half * (j % half)));
    book->bytes[i] = byte;
    return 1;
}

/* What 6 bits of a byte of the planes, and of signs, are for value i. */
static int plane_value(const struct codebook *book, int i, int bits)
{
    int code, minus;
    if (book->dims == 8) {
        code = bits >> (i == 0 ? 0 : i == 3 ? 4 : 2) & 3;
        minus = bits >> (i < 2 ? 4 + i : i - 2) & 1;
    } else {
        int nibble = bits >> (i % 2 * 2) & 15, h = i / 2;
        code = h ? (nibble & 1) | (nibble >> 1 & 6) : nibble >> 1;
        minus = nibble >> h & 1;
    }
    return book->low < 0 ? book->levels[code] : 128 + (minus ? -book->levels[code] : book->levels[code]);
}

static void fill_plane_values(struct codebook *book)
{
    for (int i = 0; i < 4; i++)
        for (int bits = 0; bits < 64; bits++)
            book->plane_values[i][bits] = (uint8_t)plane_value(book, i, bits);
}

int pl_set_codebook(int type, const int8_t *values, int n)
{
    struct codebook *book = find(type);
    if (!book || !values || n != book->n)
        return PL_EINVAL;
    if (book->ready)
        return memcmp(book->values, values, (size_t)n) ? PL_EINVAL : PL_OK;
    for (int i = 0, n_levels = 0; i < n; i++) {
        if (values[i] < book->low || values[i] > book->high)
            return PL_EINVAL;
        if (!add_value(book, i, (uint8_t)(book->low < 0 ? 8 * (values[i] + 1) : values[i]), &n_levels))
            return PL_EINVAL;
    }
    memcpy(book->values, values, (size_t)n);
    fill_plane_values(book);
    book->forms = (pl_codebook){book->bytes, book->codes, book->levels, book->planes, (const uint8_t (*)[64])book->plane_values};
    pl_iq_take_codebook(type, values, n);
    book->ready = 1;
    return PL_OK;
}
