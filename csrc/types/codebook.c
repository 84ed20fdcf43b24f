/* The codebooks of the IQ types, given once at run time (see pyllamacpu/model/codebooks.py) and then read only. */
#include "types/codebook.h"

#include <string.h>

#include "api.h"
#include "types/blocks.h"
#include "types/decode.h"
#include "types/quantize_iq.h"

/* One codebook: its values as given, and the forms of codebook.h. `per_entry`: values of an entry. Values outside
 * low … high cannot occur: kernels fold in signs (or, for IQ1, the shift of 1/8) and 64, and have 7 bits for it all. */
#define BOOK(NAME, ENTRIES, PER_ENTRY) \
    static int8_t NAME##_values[(ENTRIES) * (PER_ENTRY)]; \
    static _Alignas(64) uint8_t NAME##_bytes[(ENTRIES) * (PER_ENTRY)]; \
    static _Alignas(64) uint16_t NAME##_codes[ENTRIES]; \
    static uint8_t NAME##_levels[16];
#define FORMS(NAME) sizeof NAME##_values, NAME##_values, NAME##_bytes, NAME##_codes, NAME##_levels, {0}

BOOK(iq1_s, 2048, 8)
BOOK(iq2_xxs, 256, 8)
BOOK(iq2_xs, 512, 8)
BOOK(iq2_s, 1024, 8)
BOOK(iq3_xxs, 256, 4)
BOOK(iq3_s, 512, 4)

static struct codebook {
    int per_entry;
    int8_t low, high;
    int n;
    int8_t *values;
    uint8_t *bytes;
    uint16_t *codes;
    uint8_t *levels;
    pl_codebook forms;
    int ready;
} books[] = {
    {8, -1, 1, FORMS(iq1_s), 0},    {8, 0, 63, FORMS(iq2_xxs), 0}, {8, 0, 63, FORMS(iq2_xs), 0},
    {8, 0, 63, FORMS(iq2_s), 0},   {4, 0, 63, FORMS(iq3_xxs), 0}, {4, 0, 63, FORMS(iq3_s), 0},
};

static struct codebook *book_of(int type) {
    switch (type) {
    case PL_TYPE_IQ1_S:
    case PL_TYPE_IQ1_M: return &books[0]; /* they share one */
    case PL_TYPE_IQ2_XXS: return &books[1];
    case PL_TYPE_IQ2_XS: return &books[2];
    case PL_TYPE_IQ2_S: return &books[3];
    case PL_TYPE_IQ3_XXS: return &books[4];
    case PL_TYPE_IQ3_S: return &books[5];
    default: return NULL;
    }
}

const int8_t *pl_codebook_values(int type) {
    const struct codebook *book = book_of(type);
    return book && book->ready ? book->values : NULL;
}

const pl_codebook *pl_codebook_of(int type) {
    const struct codebook *book = book_of(type);
    return book && book->ready ? &book->forms : NULL;
}

int pl_codebook_missing(int type) {
    const struct codebook *book = book_of(type);
    return book && !book->ready ? book->n : 0;
}

/* The bit of an entry's 16 at which the code of value j starts. */
static int code_at(int per_entry, int j) { return 8 * (j % 2) + (per_entry == 8 ? 2 : 4) * (j / 2); }

/* The kernels' forms of one value; 0 when there are more different values than codes: 4 for 8 to an entry, else 16. */
static int add_value(struct codebook *book, int i, uint8_t byte, int *n_levels) {
    int code = 0, j = i % book->per_entry;
    while (code < *n_levels && book->levels[code] != byte) code++;
    if (code == *n_levels) {
        if (code == (book->per_entry == 8 ? 4 : 16)) return 0;
        book->levels[(*n_levels)++] = byte;
    }
    uint16_t *codes = &book->codes[i / book->per_entry];
    *codes = (uint16_t)((j == 0 ? 0 : *codes) | code << code_at(book->per_entry, j));
    book->bytes[i] = byte;
    return 1;
}

int pl_set_codebook(int type, const int8_t *values, int n) {
    struct codebook *book = book_of(type);
    if (!book || !values || n != book->n) return PL_EINVAL;
    if (book->ready) return memcmp(book->values, values, (size_t)n) ? PL_EINVAL : PL_OK;
    for (int i = 0, n_levels = 0; i < n; i++) {
        if (values[i] < book->low || values[i] > book->high) return PL_EINVAL;
        if (!add_value(book, i, (uint8_t)(book->low < 0 ? 8 * (values[i] + 1) : values[i]), &n_levels)) return PL_EINVAL;
    }
    memcpy(book->values, values, (size_t)n);
    book->forms = (pl_codebook){book->bytes, book->codes, book->levels};
    pl_iq_take_codebook(type, values, n);
    book->ready = 1;
    return PL_OK;
}
