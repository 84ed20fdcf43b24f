#ifndef PL_API_TEXT_H
#define PL_API_TEXT_H
#include "api/status.h"

/* ---- Byte-level BPE (text/) ---- */

/* How text is cut into words. */
#define PL_CONTRACTIONS_NONE 0
#define PL_CONTRACTIONS_ASCII 1    /* 's, 't, 're, 've, 'm, 'll, 'd are words */
#define PL_CONTRACTIONS_ANY_CASE 2 /* in any case */
#define PL_CONTRACTIONS_BEHIND 3   /* in any case, as the end of a word */
#define PL_WORD_SPACED 0   /* letters, and a space before them */
#define PL_WORD_PREFIXED 1 /* letters, and any one character before them that is no line end, letter or number */
#define PL_WORD_CASED 2    /* the same, but a word ends where a capital follows a small letter */
#define PL_TAIL_NONE 0
#define PL_TAIL_LINES 1   /* line ends belong to the punctuation before them */
#define PL_TAIL_SLASHES 2 /* slashes too */
typedef struct {
    int32_t contractions, word, tail; /* PL_CONTRACTIONS_…, PL_WORD_…, PL_TAIL_… */
    int32_t digits;                   /* of a number at the most, 0: any number of them */
    int32_t spaced_digits;            /* a number takes the space before it */
    int32_t lines;                    /* spaces end with the last line end among them */
    int32_t digits_end_spaces;        /* all spaces before a digit are one word, else without the last one */
} pl_word_rule;

/* Classes of a character, together. */
#define PL_CHAR_LETTER 1
#define PL_CHAR_NUMBER 2
#define PL_CHAR_SPACE 4
#define PL_CHAR_UPPER 8  /* capitals, and letters and marks without case */
#define PL_CHAR_LOWER 16 /* small letters, and letters and marks without case */

typedef struct pl_words pl_words;
/* classes: (256,) of the characters of block 0; copied. NULL: out of memory. */
pl_words *pl_words_new(const pl_word_rule *rule, const uint8_t *classes);
void pl_words_free(pl_words *words);
/* The classes (256,) of the characters from 256 * block on. */
int pl_words_learn(pl_words *words, int block, const uint8_t *classes);
/* The ends of the words of text (n bytes) from byte `start` on, (n,) at the most -> their number; -1 - block when that block
 * must be learned first. */
int64_t pl_words_split(const pl_words *words, const uint8_t *text, int64_t n, int64_t start, int64_t *ends);

typedef struct pl_bpe pl_bpe;
/* pieces: the vocabulary's spellings in the order of their ids, each followed by a line end; hidden: (n_pieces,)
 * whether plain text never becomes it; merges: "left right", each followed by a line end, the first of equals counts. Copies all.
 * whole_words: a word that is in the vocabulary is taken whole. NULL: out of memory, or too many. */
pl_bpe *pl_bpe_new(const uint8_t *pieces, int64_t piece_bytes, const uint8_t *hidden, int64_t n_pieces, const uint8_t *merges,
                   int64_t merge_bytes, int whole_words);
void pl_bpe_free(pl_bpe *bpe);
/* Words that were merged before, of one model; for one thread at a time. NULL: out of memory. */
typedef struct pl_word_cache pl_word_cache;
pl_word_cache *pl_word_cache_new(void);
void pl_word_cache_free(pl_word_cache *cache);

#define PL_ENEEDS_BLOCK -64 /* a character's block must be learned (pl_words_learn); then go on with the same arguments */
typedef struct {
    int64_t position, n_ids; /* bytes read so far, ids written */
    int32_t *ids;            /* as many as bytes at the most */
    int32_t block;           /* that must be learned */
} pl_encoding;
/* Goes on with the text (n bytes) until its end, PL_ENEEDS_BLOCK or PL_ENOMEM. words NULL: all of it is one word; cache may be
 * NULL. */
int pl_bpe_encode(const pl_bpe *bpe, const pl_words *words, pl_word_cache *cache, const uint8_t *text, int64_t n,
                  pl_encoding *run);

/* ---- Unigram (text/unigram.c) ---- */

typedef struct pl_unigram pl_unigram;
/* Piece i is the bytes [starts[i], starts[i + 1] - 1) of `pieces` (UTF-8; one byte more stands behind each); starts: (n_pieces
 * + 1); scores: (n_pieces,). unknown_score: of a character that no piece has. NULL: out of memory, or no vocabulary. */
pl_unigram *pl_unigram_new(const uint8_t *pieces, const int64_t *starts, const double *scores, int64_t n_pieces,
                           double unknown_score);
void pl_unigram_free(pl_unigram *unigram);
/* The id of a piece, -1: there is none. */
int pl_unigram_find(const pl_unigram *unigram, const uint8_t *text, int64_t n);
/* Cuts `word` (n bytes of UTF-8) into the likeliest pieces -> their number. ids and ends, room for n each: the pieces' ids, -1
 * for a character that no piece has, and the bytes of the word up to their ends. Of paths that are as likely the one whose
 * last piece begins first. */
int64_t pl_unigram_encode(const pl_unigram *unigram, const uint8_t *word, int64_t n, int32_t *ids, int32_t *ends);

#endif
