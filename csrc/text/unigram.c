/* Unigram segmentation (Kudo 2018): of all ways to cut a word into pieces, the likeliest, found from left to right. */
#include "api.h"
#include <stdlib.h>
#include <string.h>

#define MAX_PIECES (1 << 24)
#define MAX_BYTES 1024  /* of a piece: each place of a word is looked up so far ahead */
#define MAX_PROBES 4096 /* of a lookup: no vocabulary comes near it, but for one made to */

struct pl_unigram {
    uint8_t *text;   /* of all pieces */
    int64_t *starts; /* (n + 1): of each in `text`; one byte lies between them */
    double *scores;
    int32_t *table; /* ids + 1 by hash, 0: free */
    uint64_t mask;
    int64_t n, longest; /* bytes of a piece */
    double unknown_score;
};

static uint64_t hashed(uint64_t hash, uint8_t byte) { return (hash ^ byte) * 0x100000001b3u; }
#define HASH_START 0xcbf29ce484222325u

static int64_t length_of(const pl_unigram *u, int64_t id) { return u->starts[id + 1] - u->starts[id] - 1; }

/* The place of a text in the table, or the free one where it belongs; NULL: too many have its hash. */
static int32_t *place_of(const pl_unigram *u, uint64_t hash, const uint8_t *text, int64_t n)
{
    uint64_t at = hash ^ hash >> 29;
    for (int i = 0; i < MAX_PROBES; i++, at++) {
        int32_t *place = &u->table[at & u->mask];
        if (*place == 0 || (length_of(u, *place - 1) == n && memcmp(u->text + u->starts[*place - 1], text, (size_t)n) == 0))
            return place;
    }
    return NULL;
}

static int fill_table(pl_unigram *u)
{
    for (int64_t id = 0; id < u->n; id++) {
        const uint8_t *text = u->text + u->starts[id];
        int64_t n = length_of(u, id);
        uint64_t hash = HASH_START;
        for (int64_t i = 0; i < n; i++)
            hash = hashed(hash, text[i]);
        int32_t *place = place_of(u, hash, text, n);
        if (!place)
            return 0;
        *place = (int32_t)id + 1; /* of a piece that is there twice the last one counts */
        u->longest = n > u->longest ? n : u->longest;
    }
    return 1;
}

pl_unigram *pl_unigram_new(const uint8_t *pieces, const int64_t *starts, const double *scores, int64_t n_pieces,
                           double unknown_score)
{
    if (n_pieces < 1 || n_pieces > MAX_PIECES || starts[0] != 0)
        return NULL;
    for (int64_t i = 0; i < n_pieces; i++)
        if (starts[i + 1] <= starts[i] || starts[i + 1] - starts[i] > MAX_BYTES + 1)
            return NULL;
    pl_unigram *u = calloc(1, sizeof *u);
    if (!u)
        return NULL;
    size_t room = 16, n = (size_t)n_pieces;
    while (room < 2 * n)
        room *= 2;
    *u = (pl_unigram){.text = malloc((size_t)starts[n_pieces]),
                      .starts = malloc(sizeof *u->starts * (n + 1)),
                      .scores = malloc(sizeof *u->scores * n),
                      .table = calloc(room, sizeof *u->table),
                      .mask = room - 1,
                      .n = n_pieces,
                      .unknown_score = unknown_score};
    if (u->text && u->starts && u->scores && u->table) {
        memcpy(u->text, pieces, (size_t)starts[n_pieces]);
        memcpy(u->starts, starts, sizeof *u->starts * (n + 1));
        memcpy(u->scores, scores, sizeof *u->scores * n);
        if (fill_table(u))
            return u;
    }
    pl_unigram_free(u);
    return NULL;
}

void pl_unigram_free(pl_unigram *u)
{
    if (!u)
        return;
    free(u->text);
    free(u->starts);
    free(u->scores);
    free(u->table);
    free(u);
}

int pl_unigram_find(const pl_unigram *u, const uint8_t *text, int64_t n)
{
    uint64_t hash = HASH_START;
    for (int64_t i = 0; i < n; i++)
        hash = hashed(hash, text[i]);
    const int32_t *place = place_of(u, hash, text, n);
    return place ? *place - 1 : -1;
}

/* The best way to get to a byte of the word: its piece (-1: a character that no piece has), and where that begins. */
typedef struct {
    double score;
    int32_t start, id; /* start -1: not reached yet */
} step;

static void reach(step *to, double score, int64_t start, int32_t id)
{
    if (to->start < 0 || score > to->score)
        *to = (step){score, (int32_t)start, id};
}

static int64_t character_bytes(uint8_t first) { return first < 0x80 ? 1 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4; }

/* All steps from byte i of the word. */
static void extend(const pl_unigram *u, const uint8_t *word, int64_t n, step *steps, int64_t i)
{
    const int64_t wide = character_bytes(word[i]), end = i + wide < n ? i + wide : n;
    uint64_t hash = HASH_START;
    int single = 0;
    for (int64_t j = i; j < n && j - i < u->longest; j++) {
        hash = hashed(hash, word[j]);
        if (j + 1 < n && (word[j + 1] & 0xc0) == 0x80)
            continue; /* inside a character */
        const int32_t *place = place_of(u, hash, word + i, j + 1 - i);
        if (!place || *place == 0)
            continue;
        reach(&steps[j + 1], u->scores[*place - 1] + steps[i].score, i, *place - 1);
        single |= j + 1 == end;
    }
    if (!single)
        reach(&steps[end], u->unknown_score + steps[i].score, i, -1);
}

int64_t pl_unigram_encode(const pl_unigram *u, const uint8_t *word, int64_t n, int32_t *ids, int32_t *ends)
{
    if (n < 0 || n > INT32_MAX - 1)
        return PL_EINVAL;
    step *steps = malloc(sizeof *steps * ((size_t)n + 1));
    if (!steps)
        return PL_ENOMEM;
    for (int64_t i = 0; i <= n; i++)
        steps[i] = (step){0, i ? -1 : 0, -1};
    for (int64_t i = 0; i < n; i++)
        if (steps[i].start >= 0)
            extend(u, word, n, steps, i);
    int64_t count = 0;
    for (int64_t at = n; at > 0; at = steps[at].start)
        count++;
    for (int64_t at = n, k = count; at > 0; at = steps[at].start) {
        k--;
        ids[k] = steps[at].id;
        ends[k] = (int32_t)at;
    }
    free(steps);
    return count;
}
