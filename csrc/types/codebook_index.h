#ifndef PL_CODEBOOK_INDEX_H
#define PL_CODEBOOK_INDEX_H
/* The codebooks by number. */
#include "types/types.h"

/* The rows of types.def; types may share one. */
enum pl_codebook_index {
    PL_CODEBOOK_NONE = -1,
#define PL_CODEBOOK(NAME, ...) PL_CODEBOOK_##NAME,
#include "types/types.def"
    PL_CODEBOOK_COUNT
};

static inline int pl_codebook_index(int type)
{
    switch (type) {
/* The include is not a part of the macro: */
/* clang-format off */
#define PL_QUANTIZED_TYPE(NAME, name, number, elements, bytes, group, min, panel, codebook, ...) \
    case number: return PL_CODEBOOK_##codebook;
#include "types/types.def"
        /* clang-format on */
    default: return PL_CODEBOOK_NONE;
    }
}

#endif
