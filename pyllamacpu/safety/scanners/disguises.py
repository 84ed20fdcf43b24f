"""Other readings of a text whose words are hidden from patterns: invisible letters, letters that look like
others, digits for letters, base64 and other encodings.

A reading is for a search only: what it has stands in the text in another form. Each takes time in proportion
to the text.
Sources: Unicode's annexes 15 (compatibility forms) and 39 (letters that look alike; here those like Latin
ones).
"""

from __future__ import annotations

import binascii
import html
import unicodedata
from base64 import urlsafe_b64decode
from collections.abc import Callable, Collection, Iterator
from urllib.parse import unquote

import regex

DEPTH = 3  # encodings within each other that are undone
_READABLE = 0.9  # of the characters of an encoded text; else it is data

# Format and control characters, fillers, selectors: nothing of them is seen.
_INVISIBLE = regex.compile(
    "[\\p{Cf}\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164"
    "\uffa0\ufe00-\ufe0f\U000e0100-\U000e01ef]+"
)
_ACCENTS = regex.compile("[\u0300-\u036f]+")  # once they stand behind their letters
_LOOK_LIKE = {  # Latin letters, and those of Cyrillic, Greek, Armenian, phonetic script that look like them
    "a": "\u0430\u03b1\u0251\u1d00", "b": "\u044c\u0184\u0299", "c": "\u0441\u03f2\u1d04",
    "d": "\u0501\u1d05", "e": "\u0435\u0454\u03b5\u1d07\u212e", "f": "\u0192\ua730",
    "g": "\u0261\u0262\u0581",
    "h": "\u04bb\u029c\u0570", "i": "\u0456\u03b9\u0131\u026a", "j": "\u0458\u03f3\u1d0a",
    "k": "\u043a\u03ba\u1d0b", "l": "\u04cf\u029f\u01c0", "m": "\u043c\u1d0d",
    "n": "\u043f\u03b7\u0274\u0578\u057c", "o": "\u043e\u03bf\u03c3\u1d0f\u0585", "p": "\u0440\u03c1\u1d18",
    "q": "\u051b\u0566", "r": "\u0433\u0280", "s": "\u0455\ua731\u01bd", "t": "\u0442\u03c4\u1d1b",
    "u": "\u03c5\u028b\u1d1c\u057d", "v": "\u0475\u03bd\u1d20", "w": "\u0461\u051d\u03c9\u1d21",
    "x": "\u0445\u03c7", "y": "\u0443\u04af\u03b3\u028f", "z": "\u1d22",
    "A": "\u0410\u0391", "B": "\u0412\u0392", "C": "\u0421", "E": "\u0415\u0395", "H": "\u041d\u0397",
    "I": "\u0406\u04c0\u0399", "J": "\u0408", "K": "\u041a\u039a", "M": "\u041c\u039c", "N": "\u039d",
    "O": "\u041e\u039f", "P": "\u0420\u03a1", "S": "\u0405", "T": "\u0422\u03a4", "X": "\u0425\u03a7",
    "Y": "\u0423\u04ae\u03a5", "Z": "\u0396",
}  # fmt: skip
_LATIN = {ord(letter): latin for latin, letters in _LOOK_LIKE.items() for letter in letters}

_SPELLED = regex.compile(r"[A-Za-z0-9@$!|]{2,}+")  # words with digits or signs for letters
_LETTERS, _SIGNS = regex.compile("[A-Za-z]"), regex.compile(r"[0-9@$!|]")
_SKELETON = str.maketrans("013456789@$!|l", "oieasbtbgasiii")

_RUN = r"[A-Za-z0-9+/_-]"
_BASE64 = regex.compile(rf"(?<!{_RUN}){_RUN}{{16,}}+(?:[ \t\r]*+\n[ \t]*+{_RUN}{{4,}}+)*+={{0,2}}")
_HEX = regex.compile(r"(?<![0-9A-Za-z])(?:(?:0x|\\x)?+[0-9A-Fa-f]{2}[ ,:]?+){12,}+(?![0-9A-Za-z])")
_PERCENT = regex.compile("%[0-9A-Fa-f]{2}")
_ESCAPE = regex.compile(r"\\(?:u\{?([0-9A-Fa-f]{2,6})\}?|x([0-9A-Fa-f]{2}))")


def readings(text: str, words: Collection[str] = (), depth: int = DEPTH) -> Iterator[tuple[str, str]]:
    """(how words are hidden, a text in which they are not) for each other reading.

    words: those that are looked for, in small letters: digits and signs stand for letters in no others.
    """
    seen, spelled = {text}, {_skeleton(word): word for word in words}
    for how, reading in _readings(text, spelled, depth):
        if reading not in seen:
            seen.add(reading)
            yield how, reading


def _readings(text: str, spelled: dict[str, str], depth: int) -> Iterator[tuple[str, str]]:
    plain = plain_letters(text)
    yield "hidden or foreign letters", plain
    if _INVISIBLE.search(text):
        yield "hidden or foreign letters", plain_letters(_INVISIBLE.sub(" ", text))
    yield "digits for letters", _without_digits(plain, spelled)
    if depth > 0:
        for how, decoded in (("escapes", _unescaped(text)), *_decoded(plain)):
            if decoded and decoded != text:
                yield how, decoded
                for _, inner in _readings(decoded, spelled, depth - 1):
                    yield how, inner


def plain_letters(text: str) -> str:
    """The text without what nobody sees, and with Latin letters for those that look like them."""
    visible: str = _INVISIBLE.sub("", text)
    if visible.isascii():
        return visible
    bare: str = _ACCENTS.sub("", unicodedata.normalize("NFKD", visible))
    return bare.translate(_LATIN)


def _skeleton(word: str) -> str:
    return word.lower().translate(_SKELETON)


def _without_digits(text: str, spelled: dict[str, str]) -> str:
    def word(found: regex.Match[str]) -> str:
        token: str = found[0]
        if not (_SIGNS.search(token) and _LETTERS.search(token)):
            return token
        for end in (len(token), len(token.rstrip("!|"))):
            if (meant := spelled.get(_skeleton(token[:end]))) is not None:
                return meant + token[end:]
        return token

    plain: str = _SPELLED.sub(word, text)
    return plain


def _unescaped(text: str) -> str:
    """With percents, HTML's entities and backslashes undone."""
    found = unquote(text, errors="replace") if _PERCENT.search(text) else text
    found = html.unescape(found) if "&" in found else found
    return _ESCAPE.sub(_escaped, found) if "\\" in found else found


def _escaped(found: regex.Match[str]) -> str:
    code = int(found[1] or found[2], 16)
    return chr(code) if code < 0xD800 or 0xE000 <= code < 0x110000 else found[0]


def _decoded(text: str) -> Iterator[tuple[str, str]]:
    """What base64 and hexadecimal runs in a text say, together."""
    yield "base64", "\n".join(_texts(_BASE64.findall(text), _of_base64))
    yield "hexadecimal", "\n".join(_texts(_HEX.findall(text), _of_hex))


def _texts(runs: list[str], decode: Callable[[str], bytes]) -> Iterator[str]:
    for run in runs:
        lines = run.split()
        whole = _readable(decode("".join(lines)))
        if whole is not None:
            yield whole
        elif len(lines) > 1:  # they do not belong together
            yield from filter(None, (_readable(decode(line)) for line in lines))


def _of_base64(run: str) -> bytes:
    letters = run.rstrip("=").translate({ord("+"): "-", ord("/"): "_"})
    letters = letters[: len(letters) - (len(letters) % 4 == 1)]
    return urlsafe_b64decode(letters + "=" * (-len(letters) % 4))


def _of_hex(run: str) -> bytes:
    digits = regex.sub(r"0x|\\x|[^0-9A-Fa-f]", "", run)
    return binascii.unhexlify(digits)


def _readable(data: bytes) -> str | None:
    """As UTF-8, if it is a text. (In UTF-16 letters have zeros between them, which nobody sees.)"""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        return None
    n_fine = sum(c.isprintable() or c in "\n\r\t\0" for c in text)
    return text if text and n_fine >= _READABLE * len(text) else None
