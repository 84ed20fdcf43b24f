/* Cutting text into the words that byte-level BPE merges (pyllamacpu/text/bpe_words.py has the patterns). */
#ifndef PL_WORDS_H
#define PL_WORDS_H
#include "api.h"

#define PL_WORDS_BLOCKS 0x1100 /* of 256 characters */

struct pl_words {
    pl_word_rule rule;
    const uint8_t *blocks[PL_WORDS_BLOCKS]; /* classes of 256 characters each; NULL: not learned yet */
};

/* The end of the word at byte i < n of the text; -1 - block when a block must be learned first. */
int64_t pl_next_word(const pl_words *words, const uint8_t *text, int64_t n, int64_t i);

#endif
