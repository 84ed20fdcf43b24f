/* Byte-level BPE from text to token ids: each word (words.c) is merged once (merge.c) and then remembered. */
#include "text/bpe.h"
#include "text/words.h"

#include <stdlib.h>
#include <string.h>

/* ---- the model ---- */

/* A letter for each byte, GPT-2's alphabet: visible Latin-1 stands for itself, the others for characters from U+0100 on. */
static void find_letters(pl_bpe *bpe)
{
    for (int byte = 0, spare = 0x100; byte < 256; byte++) {
        int visible = (byte > 0x20 && byte < 0x7f) || (byte > 0xa0 && byte != 0xad);
        int code = visible ? byte : spare++, wide = code >= 0x80;
        uint8_t *letter = bpe->letters[byte];
        letter[0] = (uint8_t)(wide ? 0xc0 | code >> 6 : code);
        letter[1] = (uint8_t)(wide ? 0x80 | (code & 0x3f) : 0);
        bpe->missing[byte] = pl_piece_id(bpe, letter, 1 + wide) < 0;
    }
}

static int fill(pl_bpe *bpe, const uint8_t *pieces, int64_t piece_bytes, const uint8_t *hidden, int64_t n_pieces,
                const uint8_t *merges, int64_t merge_bytes)
{
    bpe->text = malloc((size_t)(piece_bytes + merge_bytes) + 1);
    bpe->hidden = malloc((size_t)n_pieces + 1);
    if (!bpe->text || !bpe->hidden)
        return PL_ENOMEM;
    memcpy(bpe->text, pieces, (size_t)piece_bytes);
    memcpy(bpe->text + piece_bytes, merges, (size_t)merge_bytes);
    memcpy(bpe->hidden, hidden, (size_t)n_pieces);
    int code = pl_index_lines(&bpe->pieces, bpe->text, piece_bytes);
    if (code == PL_OK)
        code = pl_index_lines(&bpe->merges, bpe->text + piece_bytes, merge_bytes);
    if (code == PL_OK)
        find_letters(bpe);
    return code;
}

pl_bpe *pl_bpe_new(const uint8_t *pieces, int64_t piece_bytes, const uint8_t *hidden, int64_t n_pieces, const uint8_t *merges,
                   int64_t merge_bytes, int whole_words)
{
    pl_bpe *bpe = calloc(1, sizeof *bpe);
    if (!bpe)
        return NULL;
    bpe->whole_words = whole_words;
    if (fill(bpe, pieces, piece_bytes, hidden, n_pieces, merges, merge_bytes) == PL_OK)
        return bpe;
    pl_bpe_free(bpe);
    return NULL;
}

void pl_bpe_free(pl_bpe *bpe)
{
    if (!bpe)
        return;
    free(bpe->text);
    free(bpe->hidden);
    free(bpe->pieces.slots);
    free(bpe->merges.slots);
    free(bpe);
}

/* ---- words met before ---- */

enum { CACHE_SLOTS = 1 << 17, CACHE_WORDS = 1 << 16, CACHE_BYTES = 1 << 20, LONGEST = 64 };

typedef struct {
    uint64_t hash;
    uint32_t word, ids; /* where they begin */
    uint8_t length, n_ids, used;
} remembered;

struct pl_word_cache {
    remembered *slots;
    uint8_t *words;
    int32_t *ids; /* a word has at most as many as bytes */
    uint32_t n, n_bytes, n_ids;
};

pl_word_cache *pl_word_cache_new(void)
{
    pl_word_cache *cache = calloc(1, sizeof *cache);
    if (!cache)
        return NULL;
    cache->slots = calloc(CACHE_SLOTS, sizeof *cache->slots);
    cache->words = malloc(CACHE_BYTES);
    cache->ids = malloc(CACHE_BYTES * sizeof *cache->ids);
    if (cache->slots && cache->words && cache->ids)
        return cache;
    pl_word_cache_free(cache);
    return NULL;
}

void pl_word_cache_free(pl_word_cache *cache)
{
    if (!cache)
        return;
    free(cache->slots);
    free(cache->words);
    free(cache->ids);
    free(cache);
}

/* The ids of a word, of LONGEST bytes at the most -> their number, PL_ENOMEM. */
static int64_t remembered_ids(const pl_bpe *bpe, pl_word_cache *cache, const uint8_t *word, int64_t n, int32_t *ids)
{
    const uint64_t hash = pl_hash_bytes(word, n);
    remembered *slot = &cache->slots[hash & (CACHE_SLOTS - 1)];
    for (; slot->used; slot = slot + 1 < cache->slots + CACHE_SLOTS ? slot + 1 : cache->slots)
        if (slot->hash == hash && slot->length == n && memcmp(cache->words + slot->word, word, (size_t)n) == 0) {
            memcpy(ids, cache->ids + slot->ids, slot->n_ids * sizeof *ids);
            return slot->n_ids;
        }
    int64_t count = pl_merge_word(bpe, word, n, ids);
    if (count < 0)
        return count;
    if (cache->n == CACHE_WORDS || cache->n_bytes + n > CACHE_BYTES || cache->n_ids + count > CACHE_BYTES) {
        memset(cache->slots, 0, CACHE_SLOTS * sizeof *cache->slots);
        cache->n = cache->n_bytes = cache->n_ids = 0;
        slot = &cache->slots[hash & (CACHE_SLOTS - 1)];
    }
    *slot = (remembered){hash, cache->n_bytes, cache->n_ids, (uint8_t)n, (uint8_t)count, 1};
    memcpy(cache->words + cache->n_bytes, word, (size_t)n);
    memcpy(cache->ids + cache->n_ids, ids, (size_t)count * sizeof *ids);
    cache->n++;
    cache->n_bytes += (uint32_t)n;
    cache->n_ids += (uint32_t)count;
    return count;
}

int pl_bpe_encode(const pl_bpe *bpe, const pl_words *words, pl_word_cache *cache, const uint8_t *text, int64_t n,
                  pl_encoding *run)
{
    while (run->position < n) {
        const uint8_t *word = text + run->position;
        int64_t end = words ? pl_next_word(words, text, n, run->position) : n;
        if (end < 0) {
            run->block = (int32_t)(-1 - end);
            return PL_ENEEDS_BLOCK;
        }
        int64_t length = end - run->position;
        int32_t *ids = run->ids + run->n_ids;
        int64_t count =
            cache && length <= LONGEST ? remembered_ids(bpe, cache, word, length, ids) : pl_merge_word(bpe, word, length, ids);
        if (count < 0)
            return (int)count;
        run->n_ids += count;
        run->position = end;
    }
    return PL_OK;
}
