"""Captions to token ids, one number per word."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor

PAD, START = 0, 1
_SPECIAL = 2


def words_of(text: str) -> list[str]:
    """Split a text into lower-case words, without punctuation."""
    return re.findall(r"\w+", text.lower())


class WordTokenizer:
    """One number per word, for the words that occur in the training captions.

    Args:
        vocabulary: The known words.
        max_words: Longer texts are cut to this number of words.
    """

    def __init__(self, vocabulary: Sequence[str], max_words: int) -> None:
        self.vocabulary = list(vocabulary)
        self.max_words = max_words
        self._number = {word: i + _SPECIAL for i, word in enumerate(self.vocabulary)}

    @classmethod
    def from_captions(cls, captions: Sequence[str]) -> WordTokenizer:
        """Make the tokenizer of a training set: its words, and its longest caption as the limit."""
        texts = [words_of(caption) for caption in captions]
        return cls(sorted({word for text in texts for word in text}), max(map(len, texts)))

    def __len__(self) -> int:
        return len(self.vocabulary) + _SPECIAL

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Tokenize texts: int64 (len(texts), 1 + max_words), start token, known words, padding."""
        rows = torch.full((len(texts), 1 + self.max_words), PAD)
        for row, text in zip(rows, texts, strict=True):
            numbers = [self._number[word] for word in words_of(text) if word in self._number]
            numbers = [START, *numbers[: self.max_words]]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def state(self) -> dict:
        """Return the arguments of the constructor that make the tokenizer again."""
        return {"vocabulary": self.vocabulary, "max_words": self.max_words}

    def warnings(self, text: str) -> list[str]:
        """Say in sentences what of a query the model cannot know.

        Raises:
            ValueError: No word of the query is known.
        """
        words = words_of(text)
        unknown = [word for word in words if word not in self._number]
        if len(unknown) == len(words):
            raise ValueError(f"no word of {text!r} occurs in the training captions")
        found = []
        if unknown:
            found.append(f"not in the training captions, ignored: {', '.join(unknown)}")
        if len(words) - len(unknown) > self.max_words:
            found.append(f"only the first {self.max_words} known words are read")
        return found
