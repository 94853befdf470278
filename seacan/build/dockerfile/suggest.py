"""The nearest known word to a misspelt one ("did you mean RUN?")."""

from __future__ import annotations

from collections.abc import Iterable

_FURTHEST = 2
"""Edits beyond which a word is no likely misspelling."""


def distance(left: str, right: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def nearest(word: str, options: Iterable[str], *, case_sensitive: bool = True) -> str:
    """The option nearest to ``word``, in its case; empty where none is near, or where one is equal to it."""
    wanted = word if case_sensitive else word.lower()
    best, best_distance = "", _FURTHEST + 1
    for option in sorted(options):
        candidate = option if case_sensitive else option.lower()
        if candidate == wanted:
            return ""
        if abs(len(candidate) - len(wanted)) >= best_distance:
            continue
        apart = distance(wanted, candidate)
        if apart < best_distance:
            best, best_distance = candidate, apart
    if best and not case_sensitive:
        if word == word.lower():
            return best.lower()
        if word == word.upper():
            return best.upper()
    return best


def with_suggestion(message: str, word: str, options: Iterable[str], *, case_sensitive: bool = True) -> str:
    """``message`` with the nearest option appended, where there is one."""
    match = nearest(word, options, case_sensitive=case_sensitive)
    return f"{message} (did you mean {match}?)" if match else message
