/* The patterns of byte-level BPE's pre-tokenizers as one matcher with a few switches (pl_word_rule).
 *
 * Every such pattern is a list of alternatives, tried in this order at each place: a contraction, a word, digits,
 * punctuation, line ends, spaces. They cover every character between them, so words have no gaps. What is a letter, a
 * digit or a space is told by Python, block by block, from the library whose patterns these are. Bytes that are not UTF-8
 * are characters of no class. */
#include "text/words.h"

#include <stdlib.h>
#include <string.h>

typedef struct {
    const pl_words *words;
    const uint8_t *text;
    int64_t n;
    int64_t missing; /* a block that is needed and not there; -1: none */
} scanner;

typedef struct {
    int64_t end; /* the byte after it */
    uint32_t code;
    int class; /* PL_CHAR_…; 0 at the end of the text */
} character;

/* Bytes of the character at p, of which `left` are there, and its number; 1 and an impossible number if it is not UTF-8. */
static int decode(const uint8_t *p, int64_t left, uint32_t *code)
{
    static const uint32_t least[5] = {0, 0, 0x80, 0x800, 0x10000};
    int length = p[0] < 0x80 ? 1 : p[0] >= 0xf0 ? 4 : p[0] >= 0xe0 ? 3 : p[0] >= 0xc0 ? 2 : 0;
    uint32_t value = length == 1 ? p[0] : length ? p[0] & (0xff >> (length + 1)) : 0;
    *code = UINT32_MAX;
    if (!length || length > left || p[0] > 0xf4)
        return 1;
    for (int i = 1; i < length; i++) {
        if ((p[i] & 0xc0) != 0x80)
            return 1;
        value = value << 6 | (p[i] & 0x3f);
    }
    if (value < least[length] || value > 0x10ffff || (value >= 0xd800 && value < 0xe000))
        return 1;
    *code = value;
    return length;
}

static inline character at(scanner *s, int64_t i)
{
    character c = {i, UINT32_MAX, 0};
    if (i >= s->n)
        return c;
    if (s->text[i] < 0x80) {
        c.end = i + 1, c.code = s->text[i], c.class = s->words->blocks[0][c.code];
        return c;
    }
    c.end = i + decode(s->text + i, s->n - i, &c.code);
    if (c.code == UINT32_MAX)
        return c;
    const uint8_t *block = __atomic_load_n(&s->words->blocks[c.code >> 8], __ATOMIC_ACQUIRE);
    if (block)
        c.class = block[c.code & 255];
    else if (s->missing < 0)
        s->missing = c.code >> 8;
    return c;
}

/* The end of the run of characters of `class` from i on, `most` of them at the most (0: any number). */
static int64_t run_end(scanner *s, int64_t i, int class, int64_t most)
{
    const uint8_t *text = s->text, *ascii = s->words->blocks[0];
    for (most = most ? most : s->n; i < s->n && most > 0; most--) {
        character c = {i + 1, text[i], text[i] < 0x80 ? ascii[text[i]] : 0};
        if (text[i] >= 0x80)
            c = at(s, i);
        if (!(c.class & class))
            break;
        i = c.end;
    }
    return i;
}

static int is_line_end(uint32_t code) { return code == '\r' || code == '\n'; }

/* 's, 't, 're, 've, 'm, 'll or 'd at i: its end, else i. U+017F is an s to those who don't care about case. */
static int64_t contraction_end(scanner *s, int64_t i)
{
    const int fold = s->words->rule.contractions != PL_CONTRACTIONS_ASCII;
    if (s->n - i < 2 || s->text[i] != '\'')
        return i;
    const uint8_t *p = s->text + i + 1;
    const int64_t left = s->n - i - 1;
    int a = p[0], b = left > 1 ? p[1] : 0;
    if (fold && a == 0xc5 && b == 0xbf)
        return i + 3;
    if (fold) {
        a = a >= 'A' && a <= 'Z' ? a + 32 : a;
        b = b >= 'A' && b <= 'Z' ? b + 32 : b;
    }
    if (a == 's' || a == 't' || a == 'm' || a == 'd')
        return i + 2;
    return (a == 'r' && b == 'e') || (a == 'v' && b == 'e') || (a == 'l' && b == 'l') ? i + 3 : i;
}

/* UPPER* LOWER+ from i on: its end, else i. Both classes share characters, so the first part may have to give one back. */
static int64_t title_end(scanner *s, int64_t i)
{
    int64_t shared = -1, end = i;
    for (character c = at(s, end); end < s->n && c.class & PL_CHAR_UPPER; c = at(s, end)) {
        if (c.class & PL_CHAR_LOWER)
            shared = end;
        end = c.end;
    }
    int64_t lower = run_end(s, end, PL_CHAR_LOWER, 0);
    return lower > end ? lower : shared < 0 ? i : run_end(s, shared, PL_CHAR_LOWER, 0);
}

/* UPPER+ from i on, behind which there is no LOWER. */
static int64_t shouted_end(scanner *s, int64_t i) { return run_end(s, i, PL_CHAR_UPPER, 0); }

static int64_t letters_end(scanner *s, int64_t i) { return run_end(s, i, PL_CHAR_LETTER, 0); }

/* A word at i, with what it may begin with: its end, else i. */
static int64_t word_end(scanner *s, int64_t i)
{
    const int kind = s->words->rule.word, cased = kind == PL_WORD_CASED;
    const character first = at(s, i);
    int prefix = kind == PL_WORD_SPACED ? first.code == ' '
                                        : !(first.class & (PL_CHAR_LETTER | PL_CHAR_NUMBER)) && !is_line_end(first.code);
    for (int k = 0; k < 1 + cased; k++) {
        int64_t (*body)(scanner *, int64_t) = !cased ? letters_end : k ? shouted_end : title_end;
        int64_t start = prefix ? first.end : i, end = body(s, start);
        if (end == start && prefix)
            start = i, end = body(s, start);
        if (end > start)
            return s->words->rule.contractions == PL_CONTRACTIONS_BEHIND ? contraction_end(s, end) : end;
    }
    return i;
}

/* Characters of no class (no space, letter or digit), and the line ends behind them: the end, else i. */
static int64_t punctuation_end(scanner *s, int64_t i)
{
    const int tail = s->words->rule.tail;
    int64_t start = at(s, i).code == ' ' ? i + 1 : i, end = start;
    for (character c; end < s->n; end = c.end) {
        c = at(s, end);
        if (c.class & (PL_CHAR_SPACE | PL_CHAR_LETTER | PL_CHAR_NUMBER))
            break;
    }
    if (end == start)
        return i;
    while (tail && end < s->n && (is_line_end(s->text[end]) || (tail == PL_TAIL_SLASHES && s->text[end] == '/')))
        end++;
    return end;
}

static int64_t digits_end(scanner *s, int64_t i)
{
    const pl_word_rule *rule = &s->words->rule;
    int64_t start = rule->spaced_digits && at(s, i).code == ' ' ? i + 1 : i;
    int64_t end = run_end(s, start, PL_CHAR_NUMBER, rule->digits);
    return end > start ? end : i;
}

/* Spaces from i on: up to the last line end among them, or without the last one if a word may begin with that. */
static int64_t spaces_end(scanner *s, int64_t i)
{
    int64_t end = i, last = i, lines = i;
    for (character c = at(s, i); end < s->n && c.class & PL_CHAR_SPACE; c = at(s, end)) {
        last = end;
        end = c.end;
        if (is_line_end(c.code))
            lines = end;
    }
    if (s->words->rule.lines && lines > i)
        return lines;
    if (end == s->n || last == i || (s->words->rule.digits_end_spaces && at(s, end).class & PL_CHAR_NUMBER))
        return end;
    return last;
}

/* The end of what most words are: ASCII letters with a space before them or not, behind which another ASCII character comes; i
 * where that is not what is there. Such a word is the same in every rule but those that look at cases. */
static inline int64_t plain_word_end(const pl_words *words, const uint8_t *text, int64_t n, int64_t i)
{
    const uint8_t *ascii = words->blocks[0];
    int64_t start = i + (text[i] == ' '), end = start;
    if (words->rule.word == PL_WORD_CASED || words->rule.contractions == PL_CONTRACTIONS_BEHIND)
        return i;
    while (end < n && text[end] < 0x80 && ascii[text[end]] & PL_CHAR_LETTER)
        end++;
    return end > start && end < n && text[end] < 0x80 ? end : i;
}

int64_t pl_next_word(const pl_words *words, const uint8_t *text, int64_t n, int64_t i)
{
    const int64_t plain = plain_word_end(words, text, n, i);
    if (plain > i)
        return plain;
    static int64_t (*const alternatives[])(scanner *, int64_t) = {word_end, digits_end, punctuation_end, spaces_end};
    scanner s = {words, text, n, -1};
    const int first = words->rule.contractions == PL_CONTRACTIONS_ASCII || words->rule.contractions == PL_CONTRACTIONS_ANY_CASE;
    int64_t end = first ? contraction_end(&s, i) : i;
    for (int k = 0; k < 4 && end == i; k++)
        end = alternatives[k](&s, i);
    return s.missing >= 0 ? -1 - s.missing : end > i ? end : n;
}

pl_words *pl_words_new(const pl_word_rule *rule, const uint8_t *classes)
{
    pl_words *words = calloc(1, sizeof *words);
    if (!words)
        return NULL;
    words->rule = *rule;
    if (pl_words_learn(words, 0, classes) == PL_OK)
        return words;
    free(words);
    return NULL;
}

int pl_words_learn(pl_words *words, int block, const uint8_t *classes)
{
    if (block < 0 || block >= PL_WORDS_BLOCKS)
        return PL_EINVAL;
    uint8_t *copy = malloc(256);
    if (!copy)
        return PL_ENOMEM;
    memcpy(copy, classes, 256);
    const uint8_t *none = NULL;
    if (!__atomic_compare_exchange_n(&words->blocks[block], &none, (const uint8_t *)copy, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE))
        free(copy); /* it was learned before, perhaps by another thread just now */
    return PL_OK;
}

void pl_words_free(pl_words *words)
{
    if (!words)
        return;
    for (int i = 0; i < PL_WORDS_BLOCKS; i++)
        free((void *)words->blocks[i]);
    free(words);
}

int64_t pl_words_split(const pl_words *words, const uint8_t *text, int64_t n, int64_t start, int64_t *ends)
{
    int64_t count = 0;
    for (int64_t i = start; i < n; count++) {
        i = pl_next_word(words, text, n, i);
        if (i < 0)
            return i;
        ends[count] = i;
    }
    return count;
}
