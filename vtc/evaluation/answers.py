"""What an answer in words says: the same thing as another one, yes or no, which option.

Nothing is dropped that tells two answers apart: letters and digits of every script, signs of numbers, symbols. 狗 is
not 猫, -5 not 5, C++ not C.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from string import ascii_uppercase

WORD = re.compile(r"[^\W_]+")
# A number with its sign and decimals; or a run of letters, digits, their marks, and symbols.
TOKEN = re.compile(r"(?<![\w.])[-+]?\d+(?:\.\d+)*|[^\W_]+|\S")
KEPT = frozenset("%#&@*/+°")  # what Unicode calls punctuation, and yet tells answers apart
MINUS = dict.fromkeys(map(ord, "−‐‑‒–—﹣－"), "-")


def words(text: str) -> list[str]:
    """Lower-case words and numbers of every script, punctuation and symbols dropped: what captions are compared by."""
    return WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def normalise(text: str) -> str:
    """An answer without case, spaces and punctuation; signs, decimal points and symbols stay.

    A text of punctuation alone is itself, so that nothing becomes equal to an empty answer.
    """
    plain = unicodedata.normalize("NFKC", text).translate(MINUS).casefold().strip()
    plain = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", plain)  # 1,000 is 1000
    tokens = [token for token in TOKEN.findall(plain) if _tells_apart(token)]
    # A symbol belongs to the word that it touches: "c++" is one token, "5 %" and "5%" are the same.
    return re.sub(r" (?=[^\w\s-])", "", " ".join(tokens)) or plain


def _tells_apart(token: str) -> bool:
    """Words, numbers and symbols do, ornamental punctuation doesn't."""
    return any(c.isalnum() or c in KEPT or unicodedata.category(c)[0] in "SM" for c in token)


def exact_match(prediction: str, answer: str) -> float:
    """1 where both say the same, whatever case, punctuation and spaces."""
    return float(normalise(prediction) == normalise(answer))


def yes_no(prediction: str) -> str:
    """`yes`, `no`, or an empty string for an answer that begins with neither."""
    first = (words(prediction) or [""])[0]
    return first if first in ("yes", "no") else ""


# Words behind which a letter is the answer and no article: "the answer is B", "option b", "Answer: (C)".
STATED = re.compile(
    r"\b(?:answer|option|choice|choose|pick|select|correct(?:\s+one)?)"
    r"(?:\s+(?:is|would\s+be|should\s+be|must\s+be|option|choice|letter|answer))*\s*[:=]?\s*"
    r"[\"'(\[*]*([A-Za-z])(?![\w'’])([^\w\s]*\s*\w*)",
    re.IGNORECASE,
)
MARKED = re.compile(r"^\W*([A-Z])\s*[.):,\]*\n]|[(\[]([A-Za-z])[)\]]|\*\*([A-Za-z])\*\*")
# Letters of other scripts stand right beside an option's: 选B.
MENTIONED = re.compile(r"(?<![A-Za-z0-9_'’-])([A-Z])(?![A-Za-z0-9_'’-])(\s+[a-z])?")


def letter(prediction: str, letters: Sequence[str] = tuple(ascii_uppercase), texts: Sequence[str] = ()) -> str:
    """The option that an answer names, else an empty string.

    An answer that is stated ("so the answer is B") goes before one that is marked ("B. red", "(B)"), that one before
    one that is mentioned ("B, since A is wrong"); of several of one kind the last stands, of marks at the beginning
    the first. The article in "A cat" and the pronoun in "I think" are no options.

    Args:
        letters: of the options that there are; others are no answer.
        texts: of the options, in their order: "A red" names A where A is "red".
    """
    text = unicodedata.normalize("NFKC", prediction).strip()
    if alone := re.fullmatch(r"\W*([A-Za-z])\W*", text):
        return _one_of(letters, [alone.group(1)])
    stated = [m.group(1) for m in STATED.finditer(text) if not _is_word(m.group(1), m.group(2), m.group(0))]
    if option := _one_of(letters, reversed(stated)):
        return option
    beginning = re.match(r"\W*([A-Z])\s*[.):,\]\n]", text)
    if beginning and (option := _one_of(letters, [beginning.group(1)])):
        return option
    for name, own in zip(letters, texts, strict=False):
        if normalise(text) == normalise(f"{name} {own}"):
            return name
    marked = [next(filter(None, m.groups())) for m in MARKED.finditer(text)]
    if option := _one_of(letters, reversed(marked)):
        return option
    mentioned = [m.group(1) for m in MENTIONED.finditer(text) if not (m.group(1) in "AI" and m.group(2))]
    return _one_of(letters, reversed(mentioned))


def _one_of(letters: Sequence[str], candidates: Iterable[str]) -> str:
    """The first candidate that is one of the letters."""
    return next((c.upper() for c in candidates if c.upper() in letters), "")


def _is_word(name: str, after: str, phrase: str) -> bool:
    """Whether the letter behind "the answer is" is the article of "a cat" or the pronoun of "I am"; of "option a" it is
    the letter, whatever follows."""
    named = re.search(r"(?:option|choice|letter)\s*[:=]?\s*\W*" + re.escape(name), phrase, re.IGNORECASE)
    return (
        not named
        and name in "aAI"
        and bool(re.match(r"\s+[a-z]", after))
        and not re.match(r"\s+(?:because|since|as|and|but|for)\b", after)
    )
