"""Rules for "positive or not positive" of an English text, from the lexicon of vaderSentiment and lists of phrases.

`BROAD` names the rules that sum up the words of a text: they vote on most rows, and repeat each other's errors.
"""

import re
import tarfile
from functools import cache

from labelling_texts import download_source

from mlcycle.data.labelling.rules import ABSTAIN, Not, rule

POSITIVE, OTHER = "positive", "not positive"
NEGATIONS = frozenset(
    ["not", "no", "never", "none", "nobody", "nothing", "neither", "nor", "without", "hardly", "barely", "scarcely", "rarely"]
    + ["cannot", "lacks", "lacking"]
)
BROAD = ("lexicon_sum", "more_words", "only_positive", "beginning", "ending")
PHRASES = {
    "praise": (
        r"\b(recommend|must[- ]see|masterpiece|delight\w*|charming|moving|gem|brilliant\w*|excellent|wonderful\w*|beautiful\w*|"
        r"powerful|hilarious|refreshing|compelling|captivating|touching|one of the best|well worth|"
        r"works (great|well|perfectly))\b",
        POSITIVE,
    ),
    "superlative": (
        r"\b(the (best|finest|funniest|greatest|most (enjoyable|beautiful|original|moving))|one of the (most|best|finest))\b",
        POSITIVE,
    ),
    "thanks": (r"\b(thanks?|thank you|congrat\w*|happy|love|loved|loves|enjoy\w*|fun)\b", POSITIVE),
    "smile": (r"(?<!\w)([:;=]-?[)D]|<3|:'\)|\^_\^|lol\b|haha)", POSITIVE),
    "frown": (r"(?<!\w)([:=]-?[(/|\\]|:'\()", OTHER),
    "complaint": (
        r"\b(waste|avoid|boring|dull|disappoint\w*|unfortunately|fails?|failed|mess|tedious|predictable|bland|lifeless|contrived|"
        r"pointless|flat|clich\w+|returned|refund|broke|stopped working|poorly|annoying)\b",
        OTHER,
    ),
    "too_much": (r"\btoo (much|many|long|little|few|often|bad|\w+ (to|for))\b", OTHER),
    "wish": (
        r"\b(could have|could've|should have|should've|would have been|might have been|if only|wish(ed)?|supposed to|instead of|"
        r"rather than|nothing more than|little more than)\b",
        OTHER,
    ),
    "question": (r"\?", Not(POSITIVE)),
}


@cache
def read_lexicon() -> dict[str, float]:
    """The mean rating of each word, from -4 to 4; the words were rated by other people than the texts."""
    with tarfile.open(download_source()) as archive:
        name = next(each for each in archive.getnames() if each.endswith("vaderSentiment/vader_lexicon.txt"))
        fields = [line.split("\t") for line in archive.extractfile(name).read().decode().splitlines()]
    return {each[0]: float(each[1]) for each in fields if len(each) > 1}


@cache
def words_of(text: str) -> tuple[str, ...]:
    """The words of a text, and signs such as smileys."""
    return tuple(re.findall(r"[a-z]+(?:'[a-z]+)?|[^\w\s]{2,3}|!|\?", text.lower()))


def is_negated(words: tuple[str, ...], place: int) -> bool:
    """Whether one of the three words before is a negation."""
    return any(word in NEGATIONS or word.endswith("n't") for word in words[max(0, place - 3) : place])


@cache
def word_scores(text: str) -> tuple[float, ...]:
    """The rating of each word, reversed and reduced after a negation as in vaderSentiment."""
    words, lexicon = words_of(text), read_lexicon()
    return tuple(lexicon.get(word, 0) * (-0.74 if is_negated(words, place) else 1) for place, word in enumerate(words))


def by_sign(total: float, margin: float = 0) -> str | None:
    """The class of a sum of ratings."""
    return POSITIVE if total > margin else OTHER if total < -margin else ABSTAIN


@rule
def lexicon_sum(row):
    """The sum of all ratings."""
    return by_sign(sum(word_scores(row.text)), 1)


@rule
def more_words(row):
    """More positive than negative words."""
    scores = word_scores(row.text)
    return by_sign(sum(each > 0 for each in scores) - sum(each < 0 for each in scores))


@rule
def only_positive(row):
    """Positive words and no negative ones."""
    scores = word_scores(row.text)
    return POSITIVE if max(scores, default=0) > 0 and min(scores) >= 0 else ABSTAIN


@rule
def beginning(row):
    """The first six words."""
    return by_sign(sum(word_scores(row.text)[:6]))


@rule
def ending(row):
    """The last six words."""
    return by_sign(sum(word_scores(row.text)[-6:]))


@rule
def only_negative(row):
    """Negative words and no positive ones."""
    scores = word_scores(row.text)
    return OTHER if min(scores, default=0) < 0 and max(scores) <= 0 else ABSTAIN


@rule
def strong_positive(row):
    """A very positive word, and no clearly negative one."""
    scores = word_scores(row.text)
    return POSITIVE if max(scores, default=0) >= 2.5 and min(scores) > -1.5 else ABSTAIN


@rule
def strong_negative(row):
    """A very negative word, and no clearly positive one."""
    scores = word_scores(row.text)
    return OTHER if min(scores, default=0) <= -2 and max(scores) < 1.5 else ABSTAIN


@rule
def after_but(row):
    """What follows the last "but"."""
    parts = re.split(r"\b(?:but|however|although|yet)\b", row.text, flags=re.IGNORECASE)
    return by_sign(sum(word_scores(parts[-1]))) if len(parts) > 1 else ABSTAIN


@rule
def negated_praise(row):
    """A positive word after a negation."""
    words, lexicon = words_of(row.text), read_lexicon()
    return OTHER if any(lexicon.get(word, 0) > 1 and is_negated(words, at) for at, word in enumerate(words)) else ABSTAIN


for key, (pattern, vote) in PHRASES.items():

    @rule(name=key)
    def has_phrase(row, search=re.compile(pattern, re.IGNORECASE).search, vote=vote):
        """A phrase of a list."""
        return vote if search(row.text) else ABSTAIN
