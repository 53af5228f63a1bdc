"""Opening sentences: templates over word lists, a form and a topic each. Opening k of seed s is always the same."""

import random
import re

from templates import FORMS
from words import LISTS

TEMPLATES = [(form, " ".join(line.split())) for form, lines in FORMS.items() for line in lines.strip().splitlines()]
_FIELD = re.compile(r"\{(!?)(?:([aAs]):)?(\w+)\}")
_ODD = re.compile(r"(?i)hour|honest|heir|X-ray|8|11|18|eleven|eight")
_NOT = re.compile(r"(?i)u[ns]i|use|euro|one|ukulele")


def article(word: str) -> str:
    """ "a" or "an"."""
    vowel = word[0].lower() in "aeiou" and not _NOT.match(word)
    return "an" if vowel or _ODD.match(word) else "a"


def plural(word: str) -> str:
    """A thing's plural."""
    if word.endswith(("knife", "shelf")):
        return word.replace("knife", "knives").replace("shelf", "shelves")
    if word.endswith("y") and word[-2] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "ch", "sh")) else "s")


def opening(seed: int, k: int, form: str) -> tuple[int, str]:
    """Opening k of a seed and form: its template's number in TEMPLATES, and its text."""
    # Seeded by a string: hashed with SHA-512, the same on every machine and version.
    draw = random.Random(f"{seed}:{k}")
    number = draw.choices(_NUMBERS[form], _WEIGHTS[form])[0]
    used, she = {}, None

    def fill(found: re.Match) -> str:
        nonlocal she
        large, a, field = found.groups()
        if field in ("he", "his", "him"):
            word = {"he": "she", "his": "her", "him": "her"}[field] if she else field
        else:
            if field == "name":
                gender = draw.random() < 0.5
                she = gender if she is None else she
                field = "woman" if gender else "man"
            seen = used.setdefault(field, set())
            word = draw.choice([word for word in LISTS[field] if word not in seen])
            seen.add(word)
        if a == "s":
            word = plural(word)
        elif a:
            article_ = article(word)
            word = f"{article_.capitalize() if a == 'A' else article_} {word}"
        return word[0].upper() + word[1:] if large else word

    text = _FIELD.sub(fill, TEMPLATES[number][1])
    # "A old" and the like, where the adjective is a list's and the article the template's.
    text = re.sub(r"\b([Aa]) (?=(\w+))", lambda m: m[1] + ("n " if article(m[2]) == "an" else " "), text)
    return number, text


_NUMBERS = {form: [i for i, (other, _) in enumerate(TEMPLATES) if other == form] for form in FORMS}


def combinations(number: int) -> int:
    """Texts that a template can make."""
    count = 1
    for _, _, field in _FIELD.findall(TEMPLATES[number][1]):
        count *= 168 if field == "name" else len(LISTS.get(field, "1"))
    return count


# A template that makes few texts is drawn less often, so that few openings are equal.
_WEIGHTS = {form: [min(combinations(number), 20000) ** 0.4 for number in numbers] for form, numbers in _NUMBERS.items()}
