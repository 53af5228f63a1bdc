"""From a sample's tokens to a text, or to the reason why it is left out."""

import re
from collections import Counter
from itertools import pairwise

SHORTEST, LONGEST = 200, 700
"""Characters of a text."""
SENTENCES = 3
"""The fewest sentences of a text."""
RAREST = -9.0
"""The log-probability of a text's least likely token, at least."""

_PLAIN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": "-", "…": "...", "\u00a0": " "})
_ALLOWED = re.compile(r"[^A-Za-z0-9 .,;:!?'\"-]")
_BREAK = re.compile(r"\s*\n\s*")
_END = re.compile(r"[.!?][\"']?(?= |$)")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|St|Jr|Sr|vs|etc|No|[A-Z])\.$")
_WORD = re.compile(r"[a-z']+")

# A chat, a program or a text about the text.
_META = re.compile(
    r"\b(?:as an AI|AI|A\.I|language model|chatbot|assistant|SmolLM|Hugging|user|prompt|rewrite|rewritten|revised|"
    r"paragraphs?|essays?|(?:this|the) (?:text|passage|sentence|story|tale|book|article|chapter|poem|narrative|author|"
    r"narrator|reader|readers|protagonist|main character|speaker|writer)|in (?:this|our|the) (?:next )?(?:chapter|"
    r"section|book|article|story|guide|post)|chapter|here is (?:a|the|your|how)|here's|here are|let me|as I mentioned|"
    r"once upon|imagine|pages?|young and ambitious|novels?|storytell\w+|word count|word problem|can't assist|"
    r"cannot assist|let's (?:explore|dive|delve|consider|take)|we'll (?:explore|dive|delve|discuss|look)|"
    r"we will (?:explore|discuss)|bullet|step \d|blog|website|podcast|https?|www)\b",
    re.IGNORECASE,
)
# What the model writes where it has nothing to say, and what is not of everyday life.
_ORNATE = re.compile(
    r"\b(?:testament|tapestry|symphony|realms?|beacon|delve|embark\w*|unwavering|unyielding|unfathomable|ethereal|"
    r"enigma\w*|nestled|transported|ancient ones|whispers?|soulmate|bustling|whimsical|mesmeri\w+|kaleidoscope|"
    r"labyrinth\w*|celestial|cosmic|cosmos|galax\w+|spaceships?|spacecraft|aliens?|quantum|blockchain|algorithms?|"
    r"virtual reality|augmented|artificial|cyber\w*|dystopia\w*|dimension\w*|portals?|prophe\w+|wizards?|sorcer\w+|"
    r"dragons?|kingdoms?|demons?|zombies?|vampires?|superhero\w*|elixir|crystal-clear|paradigm\w*|synerg\w+|"
    r"stakeholders?|leverag\w+|utiliz\w+|multifaceted|pivotal|transformative|empower\w*|holistic|innovative|"
    r"cutting-edge|sustainab\w+|dreams come|sense of (?:wonder|awe|purpose)|power of|world of|dance of|heart of|"
    r"essence of|depths of|sex\w*|porn\w*|rap(?:e|ed|ist)|suicid\w+|murder\w*|nazi\w*|terroris\w+|genocide|slaves?|"
    r"slavery|drugs?)\b",
    re.IGNORECASE,
)


def text_of(decoded: str) -> tuple[str | None, str]:
    """The text and "", or None and the reason why it is left out.

    Args:
        decoded: the tokens' text, up to the first special token.
    """
    text = decoded.translate(_PLAIN).replace("—", ", ").replace(" ,", ",").strip()
    # Paragraphs are joined; a heading, a list or a line of verse ends the text.
    parts = _BREAK.split(text)
    text = parts[0]
    for part in parts[1:]:
        if not _END.search(text[-2:]) or not re.match(r"[A-Z\"']", part):
            break
        text += " " + part
    odd = _ALLOWED.search(text)
    if odd:
        text = text[: odd.start()]
    ends = [m.end() for m in _END.finditer(text) if not _ABBREVIATION.search(text[: m.start() + 1])]
    if not ends:
        return None, "no sentence"
    text = text[: ends[-1]]
    if len(text) < SHORTEST:
        return None, "short"
    if len(text) > LONGEST:
        return None, "long"
    if len(ends) < SENTENCES:
        return None, "few sentences"
    if text.count('"') % 2 or "  " in text or "..." in text or "--" in text:
        return None, "marks"
    if _META.search(text):
        return None, "about itself"
    if _ORNATE.search(text):
        return None, "ornate"
    if re.search(r"\d{5}|\d \d|[a-z][A-Z]|\b[A-Z]{3,}\b|[,;:] ?[.,;:!?]|[!?]{2}|\b\d+\. ", text):
        return None, "figures"
    if loops(text, ends):
        return None, "loop"
    return text, ""


def loops(text: str, ends: list[int]) -> bool:
    """Whether a text repeats itself: six words twice, four words three times, three beginnings alike, few different words."""
    words = _WORD.findall(text.lower())
    for n, most in ((6, 1), (4, 2), (3, 3)):
        grams = Counter(zip(*(words[i:] for i in range(n)), strict=False))
        if grams and max(grams.values()) > most:
            return True
    if any(a == b and a not in ("had", "that") for a, b in pairwise(words)):
        return True
    if len(set(words)) < 0.55 * len(words):
        return True
    starts = [0, *ends[:-1]]
    first = [tuple(_WORD.findall(text[a:b].lower())[:2]) for a, b in zip(starts, ends, strict=True)]
    return any(first.count(pair) > 3 for pair in set(first)) or any(
        a == b == c for a, b, c in zip(first, first[1:], first[2:], strict=False)
    )
