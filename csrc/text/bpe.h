/* Byte-level BPE: pieces, and the merges that make them. */
#ifndef PL_BPE_H
#define PL_BPE_H
#include "api.h"

/* Lines of a text by what they say, the first of equals. */
typedef struct {
    uint32_t hash;
    int32_t number, begin, length; /* of the line, -1: none; bytes */
} pl_line;
typedef struct {
    const uint8_t *text;
    pl_line *slots;
    int64_t n_slots; /* a power of 2 */
} pl_lines;

struct pl_bpe {
    uint8_t *text;          /* the lines of both */
    pl_lines pieces;        /* a line's number is its id */
    pl_lines merges;        /* and its rank */
    uint8_t *hidden;        /* of each piece: plain text never becomes it */
    uint8_t letters[256][2]; /* of each byte, in UTF-8, of one byte where the second is 0 */
    uint8_t missing[256];   /* bytes whose letter is not a piece that text becomes */
    int whole_words;
};

/* lines.c. A string is begin and length, and for pl_find_pair two of them, with a space between. -1: no such line. */
int pl_index_lines(pl_lines *lines, const uint8_t *text, int64_t n);
int32_t pl_find_line(const pl_lines *lines, const uint8_t *begin, int64_t length);
int32_t pl_find_pair(const pl_lines *lines, const uint8_t *begin, int64_t left, int64_t right);
uint64_t pl_hash_bytes(const uint8_t *p, int64_t n);

/* merge.c: the ids of a word -> their number, PL_ENOMEM. ids: as many as it has bytes */
int64_t pl_merge_word(const pl_bpe *bpe, const uint8_t *word, int64_t n, int32_t *ids);
/* The id of a piece that text can become; -1: none. */
int32_t pl_piece_id(const pl_bpe *bpe, const uint8_t *spelling, int64_t length);

#endif
