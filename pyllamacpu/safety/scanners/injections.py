"""Patterns of prompt injection: an order to ignore what was said before, in the languages of Llama 3 that are
written in Latin letters. Words without accents, as `disguises` reads them.
"""

from __future__ import annotations


def _order(verbs: str, all_of: str, things: str, before: str) -> str:
    """A verb, what says that all or the earlier are meant, and the things; either order of the last two."""
    words = r"(?:\w+\s+)"
    return (
        rf"\b(?:{verbs})\s+{words}{{0,3}}?(?:(?:{all_of})\s+{words}{{0,2}}?(?:{things})"
        rf"|(?:{things})\s+{words}{{0,2}}?(?:{before}))(?!\w)"
    )


INJECTIONS: dict[str, str] = {
    "Prompt injection": r"\b(?:ignore|disregard|forget|override)\s+(?:\w+\s+){0,3}?"
    r"(?:previous|prior|above|earlier|preceding|all|any|your)\s+(?:\w+\s+){0,2}?"
    r"(?:instructions|directions|guidelines|rules|prompts?)\b",
    "Prompt injection (German)": _order(
        "ignorier(?:e|en|t)|missachte[nt]?|vergiss|vergesst|verwirf|umgehe|ubergehe",
        "alle|samtliche|deine|eure|bisherige[nr]?|vorherige[nr]?|vorige[nr]?|fruhere[nr]?|obige[nr]?"
        "|vorangegangene[nr]?|vorhergehende[nr]?",
        "anweisung(?:en)?|instruktion(?:en)?|vorgaben?|regeln?|richtlinien?|befehle?|prompts?",
        "oben|zuvor|davor",
    ),
    "Prompt injection (French)": _order(
        "(?<!n['\u2019])(?:ignore[zr]?|oublie[zr]?)(?!\\s+(?:pas|jamais)\\b)|ne\\s+(?:tiens|tenez)\\s+(?:pas|aucun)\\s+compte",
        "toutes|tes|vos",
        "instructions?|consignes?|regles?|directives?",
        "precedentes?|anterieures?|prealables?|ci-dessus|initiales?",
    ),
    "Prompt injection (Spanish)": _order(
        r"(?<!\bno\s)(?:ignor(?:a|e|ad|en)|olvid(?:a|ad|e|en)|descart(?:a|e|ad|en)|desobedece)",
        "todas|tus|sus",
        "instrucciones|instruccion|reglas?|normas?|directrices|indicaciones|ordenes",
        "anteriores|anterior|previas?|precedentes|de arriba",
    ),
    "Prompt injection (Italian)": _order(
        r"(?<!\bnon\s)(?:ignora(?:te|re)?|dimentica(?:te|re)?|trascura(?:te)?)",
        "tutte|tue|vostre",
        "istruzioni|istruzione|regole|direttive|indicazioni",
        "precedenti|precedente|anteriori|sopra",
    ),
    "Prompt injection (Portuguese)": _order(
        r"(?<!\bnao\s)(?:ignor(?:e|a|em|ar)|esque(?:ca|cam|ce)|desconsider(?:e|em|ar))",
        "todas|suas|tuas",
        "instrucoes|instrucao|regras?|diretrizes|orientacoes|ordens",
        "anteriores|anterior|previas?|precedentes|acima",
    ),
}
