"""What the two stages stand against, each written to be fast.

Features are normalised once, when they are stored, in float32, the fastest type for products of
matrices on a CPU. What depends on the query alone is computed once a query. All that follows a
product of matrices is done while its result is in the cache.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.retrieval.corpus import in_parts

XCLIP_TEMPERATURE = 0.01
_BLOCK = 2**18  # similarities of words and frames that are held at once


class XClip:
    """X-CLIP's scorer: video and sentence, video and words, frames and sentence, frames and words.

    Args:
        frames: (videos, T, D), any floating type.
        words: W.

    Attributes:
        frames: (videos, T, D) float32, of unit norm.
        video: (videos, D) float32, of unit norm, the mean of the frames.
        matrices: The learned matrices by name, at their initial values with noise, so that a
            transposed one would be seen.
    """

    def __init__(self, frames: Tensor, words: int) -> None:
        self.frames = torch.empty(frames.shape)
        self.video = torch.empty(len(frames), frames.shape[2])
        for start in range(0, len(frames), 256):
            part = slice(start, start + 256)
            self.frames[part] = F.normalize(frames[part].float(), dim=-1)
            self.video[part] = F.normalize(self.frames[part].mean(1), dim=-1)
        generator = torch.Generator().manual_seed(1)

        def matrix(size: int) -> Tensor:
            return torch.eye(size) + 0.01 * torch.randn(size, size, generator=generator)

        count, dim = frames.shape[1:]
        sizes = {"global": dim, "local": dim, "word": words, "frame": count}
        sizes |= {"words": words, "words_last": words, "frames": count, "frames_last": count}
        self.matrices = {name: matrix(size) for name, size in sizes.items()}

    def scores(self, text: Tensor, words: Tensor, size: int) -> Tensor:
        """Score all pairs.

        Args:
            text: (A, D), of unit norm.
            words: (A, W, D), of unit norm.
            size: Videos; beyond those that are stored, these are reused in turn.

        Returns:
            (A, size).
        """
        queries, count, dim = words.shape
        matrices = self.matrices
        coarse = torch.cat([words.flatten(0, 1), text @ matrices["global"]]).T.contiguous()
        local = (words.flatten(0, 1) @ matrices["local"]).view(queries, count, dim)
        fine = torch.cat([local, text[:, None]], 1).flatten(0, 1).T.contiguous()
        block = max(1, _BLOCK // (queries * self.frames.shape[1] * count))
        parts = []
        for frames, video in in_parts(size, self.frames, self.video):
            for frame_block, video_block in zip(
                frames.split(block), video.split(block), strict=True
            ):
                parts.append(self._block(frame_block, video_block, fine, coarse, queries))
        return torch.cat(parts).T

    def _block(
        self, frames: Tensor, video: Tensor, fine: Tensor, coarse: Tensor, queries: int
    ) -> Tensor:
        """Score all queries and the videos of a block, (b, A)."""
        matrices = self.matrices
        of_video = video @ coarse  # (b, A * W + A)
        video_words = of_video[:, :-queries].unflatten(1, (queries, -1))
        of_frames = (frames.flatten(0, 1) @ fine).view(*frames.shape[:2], queries, -1)
        sentence = of_frames[..., -1].transpose(1, 2)  # (b, A, T)
        by_word = of_frames[..., :-1].transpose(1, 2).contiguous()  # (b, A, T, W)
        by_frame = by_word.transpose(2, 3).contiguous()  # (b, A, W, T)
        frame_level = _weighted(_weighted(by_word, matrices["words"]), matrices["frames_last"])
        word_level = _weighted(_weighted(by_frame, matrices["frames"]), matrices["words_last"])
        return (
            of_video[:, -queries:]
            + _weighted(video_words, matrices["word"])
            + _weighted(sentence, matrices["frame"])
            + (frame_level + word_level) / 2
        ) / 4


def _weighted(similarities: Tensor, mix: Tensor) -> Tensor:
    """Average over the last axis, weighted by a softmax that a learned matrix mixes."""
    return ((similarities / XCLIP_TEMPERATURE).softmax(-1) @ mix * similarities).sum(-1)


def mean_pool_search(vectors: Tensor, text: Tensor, k: int) -> Tensor:
    """Search as CLIP4Clip without parameters does: cosines with mean-pooled frames.

    Args:
        vectors: (N, D) float32, pooled and normalised when stored.
        text: (A, D), of unit norm.
        k: How many to find.

    Returns:
        Positions (A, k), best first.
    """
    scores = (vectors @ text[0])[None] if len(text) == 1 else text @ vectors.T
    return scores.topk(min(k, len(vectors)), dim=1).indices


def faiss_index(vectors: Tensor) -> Any:
    """Fill faiss's `IndexFlatIP`.

    Raises:
        ImportError: faiss is not installed.
    """
    index = importlib.import_module("faiss").IndexFlatIP(vectors.shape[1])
    index.add(vectors.numpy())
    return index


def set_threads(count: int) -> None:
    """Set the threads of torch, and of faiss where it is installed."""
    torch.set_num_threads(count)
    try:
        importlib.import_module("faiss").omp_set_num_threads(count)
    except ImportError:
        return


def text_tower(dim: int) -> torch.nn.Module:
    """Build a transformer of the size of CLIP's text tower: 12 layers, for (A, 77, D)."""
    layer = torch.nn.TransformerEncoderLayer(
        dim, max(1, dim // 64), 4 * dim, activation="gelu", batch_first=True, norm_first=True
    )
    return torch.nn.TransformerEncoder(layer, 12, enable_nested_tensor=False).eval()
