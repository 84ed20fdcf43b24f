/* Merging the letters of one word, lowest rank first, the leftmost of equal ranks first.
 *
 * A word is spelled in letters of one or two bytes; a piece is a run of them, so that merging only moves its end. */
#include "text/bpe.h"

#include <stdlib.h>
#include <string.h>

#define SHORT 32 /* letters of a word whose pairs are looked through for the best, again and again */
#define NO_MERGE INT32_MAX

int32_t pl_piece_id(const pl_bpe *bpe, const uint8_t *spelling, int64_t length)
{
    int32_t id = pl_find_line(&bpe->pieces, spelling, length);
    return id >= 0 && !bpe->hidden[id] ? id : -1;
}

/* The ids of a piece, which without an id of its own becomes its letters -> their number. */
static int64_t write_ids(const pl_bpe *bpe, const uint8_t *piece, int64_t length, int32_t *ids)
{
    ids[0] = pl_piece_id(bpe, piece, length);
    if (ids[0] >= 0)
        return 1;
    int64_t n = 0;
    for (int64_t i = 0, letter; i < length; i += letter) {
        letter = piece[i] < 0x80 ? 1 : 2;
        ids[n++] = pl_piece_id(bpe, piece + i, letter);
    }
    return n;
}

/* The rank of the merge of the pieces between three places. */
static int32_t rank_of(const pl_bpe *bpe, const uint8_t *word, int32_t begin, int32_t middle, int32_t end)
{
    int32_t rank = pl_find_pair(&bpe->merges, word + begin, middle - begin, end - middle);
    return rank < 0 ? NO_MERGE : rank;
}

/* at: (n + 1,) where the letters begin, and the end of the word. */
static int64_t merge_short(const pl_bpe *bpe, const uint8_t *word, int32_t *at, int n, int32_t *ids)
{
    int32_t ranks[SHORT];
    for (int i = 0; i + 1 < n; i++)
        ranks[i] = rank_of(bpe, word, at[i], at[i + 1], at[i + 2]);
    for (;;) {
        int best = 0;
        for (int i = 1; i + 1 < n; i++)
            if (ranks[i] < ranks[best])
                best = i;
        if (n < 2 || ranks[best] == NO_MERGE)
            break;
        memmove(at + best + 1, at + best + 2, (size_t)(n - best - 1) * sizeof *at);
        memmove(ranks + best, ranks + best + 1, (size_t)(n - best - 2) * sizeof *ranks);
        n--;
        if (best + 1 < n)
            ranks[best] = rank_of(bpe, word, at[best], at[best + 1], at[best + 2]);
        if (best > 0)
            ranks[best - 1] = rank_of(bpe, word, at[best - 1], at[best], at[best + 1]);
    }
    int64_t written = 0;
    for (int i = 0; i < n; i++)
        written += write_ids(bpe, word + at[i], at[i + 1] - at[i], ids + written);
    return written;
}

/* ---- long words: a heap of pairs ---- */

typedef struct {
    int32_t rank, left, middle, end; /* the letters that begin the two pieces, and the one behind them */
} candidate;

typedef struct {
    const pl_bpe *bpe;
    const uint8_t *word;
    const int32_t *at;
    int32_t *before, *after; /* (n,) the neighbours of the piece that begins with a letter; after 0: none does */
    candidate *heap;         /* (3 n,): a merge takes one and adds two at the most */
    int32_t n, n_heap;
} long_word;

static int comes_first(const candidate *a, const candidate *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->left < b->left;
}

static void push(long_word *w, int32_t left, int32_t middle)
{
    if (left < 0 || middle >= w->n)
        return;
    candidate c = {0, left, middle, w->after[middle]};
    c.rank = rank_of(w->bpe, w->word, w->at[left], w->at[middle], w->at[c.end]);
    if (c.rank == NO_MERGE)
        return;
    int32_t i = w->n_heap++;
    for (; i > 0 && comes_first(&c, &w->heap[(i - 1) / 2]); i = (i - 1) / 2)
        w->heap[i] = w->heap[(i - 1) / 2];
    w->heap[i] = c;
}

static candidate pop(long_word *w)
{
    candidate best = w->heap[0], last = w->heap[--w->n_heap];
    int32_t i = 0;
    for (int32_t child; (child = 2 * i + 1) < w->n_heap; i = child) {
        if (child + 1 < w->n_heap && comes_first(&w->heap[child + 1], &w->heap[child]))
            child++;
        if (!comes_first(&w->heap[child], &last))
            break;
        w->heap[i] = w->heap[child];
    }
    w->heap[i] = last;
    return best;
}

static void merge_all(long_word *w)
{
    for (int32_t i = 0; i + 1 < w->n; i++)
        push(w, i, i + 1);
    while (w->n_heap) {
        candidate c = pop(w);
        if (w->after[c.left] != c.middle || w->after[c.middle] != c.end)
            continue; /* one of the two has been merged since */
        w->after[c.left] = c.end;
        w->after[c.middle] = 0;
        if (c.end < w->n)
            w->before[c.end] = c.left;
        push(w, w->before[c.left], c.left);
        push(w, c.left, c.end);
    }
}

static int64_t merge_long(const pl_bpe *bpe, const uint8_t *word, const int32_t *at, int64_t n, int32_t *ids)
{
    if (n > INT32_MAX / 4)
        return PL_ENOMEM;
    int32_t *links = malloc(2 * (size_t)n * sizeof *links);
    candidate *heap = malloc(3 * (size_t)n * sizeof *heap);
    int64_t written = PL_ENOMEM;
    if (links && heap) {
        long_word w = {bpe, word, at, links, links + n, heap, (int32_t)n, 0};
        for (int32_t i = 0; i < n; i++)
            w.before[i] = i - 1, w.after[i] = i + 1;
        merge_all(&w);
        written = 0;
        for (int32_t i = 0; i < n; i = w.after[i])
            written += write_ids(bpe, word + at[i], at[w.after[i]] - at[i], ids + written);
    }
    free(links);
    free(heap);
    return written;
}

/* ---- words ---- */

/* Writes the letters of a word to spelled (2 n,) and where they begin to at (n + 1,), if it is not NULL -> their number. A
 * byte that is `missing`, if that is not NULL, is left out. */
static int64_t spell(const pl_bpe *bpe, const uint8_t *word, int64_t n, const uint8_t *missing, uint8_t *spelled, int32_t *at)
{
    int64_t count = 0;
    int32_t end = 0;
    for (int64_t i = 0; i < n; i++) {
        const uint8_t *letter = bpe->letters[word[i]];
        if (missing && missing[word[i]])
            continue;
        at[count++] = end;
        spelled[end++] = letter[0];
        if (letter[1])
            spelled[end++] = letter[1];
    }
    at[count] = end;
    return count;
}

static int64_t merge_spelled(const pl_bpe *bpe, const uint8_t *word, int64_t n, uint8_t *spelled, int32_t *at, int32_t *ids)
{
    int64_t count;
    if (bpe->whole_words) {
        count = spell(bpe, word, n, NULL, spelled, at);
        ids[0] = pl_piece_id(bpe, spelled, at[count]);
        if (ids[0] >= 0)
            return 1;
    }
    count = spell(bpe, word, n, bpe->missing, spelled, at);
    return count <= SHORT ? merge_short(bpe, spelled, at, (int)count, ids) : merge_long(bpe, spelled, at, count, ids);
}

int64_t pl_merge_word(const pl_bpe *bpe, const uint8_t *word, int64_t n, int32_t *ids)
{
    if (n <= SHORT) {
        uint8_t spelled[2 * SHORT];
        int32_t at[SHORT + 1];
        return merge_spelled(bpe, word, n, spelled, at, ids);
    }
    if (n > INT32_MAX / 2)
        return PL_ENOMEM;
    uint8_t *spelled = malloc(2 * (size_t)n);
    int32_t *at = malloc((size_t)(n + 1) * sizeof *at);
    int64_t written = spelled && at ? merge_spelled(bpe, word, n, spelled, at, ids) : PL_ENOMEM;
    free(spelled);
    free(at);
    return written;
}
