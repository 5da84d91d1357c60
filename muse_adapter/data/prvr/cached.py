"""Frame features of videos whose tokens `cache_tokens` keeps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import Tensor

from muse_adapter.data.token_cache import CachedTokens


class CachedFrames(Mapping[str, Tensor]):
    """Frame features of a folder of `cache_tokens`: of each frame its class token.

    `features[video]` is (T, C), of the frames that are not masked. For a backbone without a class
    token it is the mean of the frame's patches.

    Args:
        cached: The tokens.
        videos: Id of each video, in the order in which they were cached.
        num_prefix_tokens: Tokens before the patches, of which the first is the class token. None:
            what the patch grid leaves.

    Raises:
        ValueError: There is not one id for each video, ids repeat, or `num_prefix_tokens` is None
            and the cache does not know the patch grid.
    """

    def __init__(
        self, cached: CachedTokens, videos: Sequence[str], *, num_prefix_tokens: int | None = None
    ) -> None:
        if len(videos) != len(cached) or len(set(videos)) != len(videos):
            raise ValueError(
                f"videos must be {len(cached)} different ids, one for each cached video, got "
                f"{len(videos)}, of which {len(set(videos))} are different"
            )
        if num_prefix_tokens is None:
            if cached.grid is None:
                raise ValueError("num_prefix_tokens must be given: the cache has no patch grid")
            num_prefix_tokens = cached.description.num_tokens - cached.grid[0] * cached.grid[1]
        self.cached = cached
        self.num_prefix_tokens = num_prefix_tokens
        self._index = {video: index for index, video in enumerate(videos)}

    def __getitem__(self, video: str) -> Tensor:
        tokens, mask = self.cached[self._index[video]]
        tokens = tokens[mask]
        return tokens[:, 0] if self.num_prefix_tokens else tokens.mean(1)

    def __contains__(self, video: object) -> bool:
        return video in self._index

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __len__(self) -> int:
        return len(self._index)
