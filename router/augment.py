"""Rewrites a query as other people would type it, never changing what it asks for."""

import random
import re
from collections.abc import Callable

CONTRACTIONS = {
    "cannot": "can't",
    "do not": "don't",
    "does not": "doesn't",
    "did not": "didn't",
    "is not": "isn't",
    "i am": "I'm",
    "i have": "I've",
    "it is": "it's",
    "will not": "won't",
    "would not": "wouldn't",
    "that is": "that's",
    "you are": "you're",
    "was not": "wasn't",
    "has not": "hasn't",
    "have not": "haven't",
    "we are": "we're",
    "there is": "there's",
}
# Either can stand for the other in any message without changing agent or arguments.
INTERCHANGEABLE = [
    ("please", "kindly"),
    ("maybe", "perhaps"),
    ("whenever", "every time"),
    ("again", "once more"),
    ("kids", "children"),
    ("big", "large"),
    ("bought", "purchased"),
    ("colleague", "coworker"),
    ("for example", "for instance"),
    ("anyone", "anybody"),
    ("someone", "somebody"),
    ("everyone", "everybody"),
    ("nearly", "almost"),
    ("although", "though"),
    ("lots of", "plenty of"),
]
# The second can stand for the first, but has other meanings too: a fast charger, the help page, GET /orders.
ONE_WAY = [
    ("buy", "purchase"),
    ("quickly", "fast"),
    ("incorrect", "wrong"),
    ("assist", "help"),
    ("require", "need"),
    ("obtain", "get"),
    ("receive", "get"),
    ("company", "firm"),
    ("photo", "picture"),
    ("repair", "fix"),
    ("begin", "start"),
    ("inform", "tell"),
    ("until", "till"),
    ("as well", "too"),
]
OPENINGS = ["Hi, ", "Hello, ", "Hi there, ", "Hey, ", "Good morning, ", "Dear team, ", "Excuse me, ", "Quick one: "]
CLOSINGS = [
    " Thanks.",
    " Thank you!",
    " Cheers",
    " Many thanks in advance.",
    " Please advise.",
    " Thx",
    " Kind regards",
]
# The key beside each letter on a keyboard.
NEIGHBOURS = dict(zip("abcdefghijklmnoprstuvwxy", "svxfrghjoklknmpotayibect", strict=True))


def typo(text: str, rng: random.Random) -> str:
    """One slip of the fingers inside a longer word: two letters swapped, one dropped, doubled or hit beside."""
    words = list(re.finditer(r"[A-Za-z]{4,}", text))
    if not words:
        return text
    word = rng.choice(words)
    place = rng.randrange(word.start() + 1, word.end() - 1)
    here, after = text[place], text[place + 1]
    slip = rng.choice([after + here, after, here + here + after, NEIGHBOURS.get(here, here) + after])
    return text[:place] + slip + text[place + 2 :]


def casing(text: str, rng: random.Random) -> str:
    """All in lower case, as on a phone; now and then all in capitals."""
    return text.upper() if rng.random() < 0.15 and len(text) < 80 else text.lower()


def politeness(text: str, rng: random.Random) -> str:
    """A greeting in front, a word of thanks behind, or both."""
    opening, closing = rng.choice([(True, False), (False, True), (True, True)])
    if opening:
        first = text[0] if re.match(r"I\b", text) or text[1:2].isupper() else text[0].lower()
        text = rng.choice(OPENINGS) + first + text[1:]
    return text + rng.choice(CLOSINGS) if closing else text


def _replace_word(text: str, old: str, new: str) -> str:
    def like(match: re.Match[str]) -> str:
        return new[0].upper() + new[1:] if match[0][0].isupper() else new

    return re.sub(rf"\b{re.escape(old)}\b", like, text, flags=re.IGNORECASE)


def contractions(text: str, rng: random.Random) -> str:
    """`do not` as `don't` and so on, or the other way round."""
    if rng.random() < 0.5:
        pairs = list(CONTRACTIONS.items())
    else:  # not `it's` and the like: it may be `it has`
        pairs = [(short, long) for long, short in CONTRACTIONS.items() if not short.endswith("'s")]
    for old, new in pairs:
        text = _replace_word(text, old, new)
    return text


def synonyms(text: str, rng: random.Random) -> str:
    """Some words by others of the same meaning."""
    either_way = [pair if rng.random() < 0.5 else pair[::-1] for pair in INTERCHANGEABLE]
    for old, new in [*either_way, *ONE_WAY]:
        if rng.random() < 0.7:
            text = _replace_word(text, old, new)
    return text


REWRITES: list[Callable[[str, random.Random], str]] = [typo, casing, politeness, contractions, synonyms]


def rewritten(text: str, rng: random.Random) -> str:
    """`text` after one to three different rewrites; never equal to it (a greeting or thanks can always be added)."""
    wanted, result = rng.randint(1, 3), text
    for rewrite in rng.sample(REWRITES, k=len(REWRITES)):
        changed = rewrite(result, rng)
        if changed != result:
            result, wanted = changed, wanted - 1
        if wanted == 0:
            break
    return result
