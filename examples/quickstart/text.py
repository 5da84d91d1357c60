"""Captions to embeddings: a word tokenizer and a small transformer."""

from __future__ import annotations

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from examples.quickstart.transformer import Block, position_embedding

PAD, START = 0, 1
_SPECIAL = 2


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"\w+", text.lower())


class WordTokenizer:
    """One number per word, for the words that occur in the training captions.

    Args:
        vocabulary: the known words.
        max_words: longer texts are cut to this number of words.
    """

    def __init__(self, vocabulary: Sequence[str], max_words: int) -> None:
        self.vocabulary = list(vocabulary)
        self.max_words = max_words
        self._number = {word: i + _SPECIAL for i, word in enumerate(self.vocabulary)}

    @classmethod
    def from_captions(cls, captions: Sequence[str]) -> WordTokenizer:
        """The tokenizer of a training set: its words, and its longest caption as the limit."""
        texts = [words_of(caption) for caption in captions]
        return cls(sorted({word for text in texts for word in text}), max(map(len, texts)))

    def __len__(self) -> int:
        return len(self.vocabulary) + _SPECIAL

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """int64 (len(texts), 1 + max_words): a start token, the known words, padding."""
        rows = torch.full((len(texts), 1 + self.max_words), PAD)
        for row, text in zip(rows, texts, strict=True):
            numbers = [self._number[word] for word in words_of(text) if word in self._number]
            numbers = [START, *numbers[: self.max_words]]
            row[: len(numbers)] = torch.tensor(numbers)
        return rows

    def state(self) -> dict:
        """What the constructor takes, to make the tokenizer again."""
        return {"vocabulary": self.vocabulary, "max_words": self.max_words}

    def warnings(self, text: str) -> list[str]:
        """What of a query the model cannot know, as sentences.

        Raises:
            ValueError: if no word of the query is known.
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


class TextTower(nn.Module):
    """Tokens of `WordTokenizer` to one embedding per text, the mean over its tokens.

    The mean gives every word a share from the beginning; the start token alone would have to find
    them first, and keeps a text without a known word from having nothing to average.

    Args:
        vocabulary: number of tokens.
        length: tokens in a text.
        width: width of the tower and of the embedding.
        layers: transformer layers.
    """

    def __init__(self, *, vocabulary: int, length: int, width: int, layers: int) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width, padding_idx=PAD)
        nn.init.normal_(self.words.weight, std=0.3)
        self.positions = position_embedding(length, width)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        """int64 (B, L) to (B, D), not normalised."""
        keep = ids != PAD
        length = int(keep.sum(dim=1).max())  # columns that are padding in every text cost time only
        x = self.words(ids[:, :length]) + self.positions[:length]
        for block in self.blocks:
            x = block(x, keep[:, :length])
        kept = keep[:, :length, None]
        return self.project((self.norm(x) * kept).sum(1) / kept.sum(1))
