/* The codebooks of the IQ types, given once at run time (see pyllamacpu/model/codebooks.py) and then read only. */
#include <string.h>

#include "api.h"
#include "blocks.h"
#include "decode.h"

static int8_t iq1_s[2048 * 8], iq2_xxs[256 * 8], iq2_xs[512 * 8], iq2_s[1024 * 8], iq3_xxs[256 * 4], iq3_s[512 * 4];

/* Values outside low … high would not fit int8 once signs (or, for IQ1, the shift of 1/8) are folded in. */
static struct codebook {
    int8_t *values;
    int n;
    int8_t low, high;
    int ready;
} books[] = {
    {iq1_s, sizeof iq1_s, -1, 1, 0},     {iq2_xxs, sizeof iq2_xxs, 0, 127, 0}, {iq2_xs, sizeof iq2_xs, 0, 127, 0},
    {iq2_s, sizeof iq2_s, 0, 127, 0},    {iq3_xxs, sizeof iq3_xxs, 0, 127, 0}, {iq3_s, sizeof iq3_s, 0, 127, 0},
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

const int8_t *pl_codebook(int type) {
    const struct codebook *book = book_of(type);
    return book && book->ready ? book->values : NULL;
}

int pl_codebook_missing(int type) {
    const struct codebook *book = book_of(type);
    return book && !book->ready ? book->n : 0;
}

int pl_set_codebook(int type, const int8_t *values, int n) {
    struct codebook *book = book_of(type);
    if (!book || !values || n != book->n) return PL_EINVAL;
    if (book->ready) return memcmp(book->values, values, (size_t)n) ? PL_EINVAL : PL_OK;
    for (int i = 0; i < n; i++)
        if (values[i] < book->low || values[i] > book->high) return PL_EINVAL;
    memcpy(book->values, values, (size_t)n);
    book->ready = 1;
    return PL_OK;
}
