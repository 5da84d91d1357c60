"""How the frames of a model are preprocessed."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import SiglipImageProcessor

from muse_adapter.sentence_transformers.backbone import Backbone


class FrameInputs:
    """The image processor of a model, for frames of one size.

    Args:
        backbone: The model and its processor.
    """

    def __init__(self, backbone: Backbone) -> None:
        self.processor = backbone.processor.image_processor
        vision = backbone.model.config.vision_config
        if hasattr(vision, "num_patches") and not hasattr(vision, "image_size"):
            # NaFlex processors keep the shape of each image and give patches: the frames of all
            # videos need one size, the square that the model's positions are made for.
            side = int(vision.num_patches**0.5) * vision.patch_size
            given = self.processor
            self.processor = SiglipImageProcessor(
                size={"height": side, "width": side},
                resample=given.resample,
                rescale_factor=given.rescale_factor,
                image_mean=given.image_mean,
                image_std=given.image_std,
            )

    def pad(self, videos: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        """Preprocess the frames of videos and pad them to the longest.

        Args:
            videos: B videos of frames (3, height, width), uint8; they may differ in size, and a
                video may have none.

        Returns:
            Frames (B, T, 3, height, width), zero where padded, and the frame mask (B, T), 1 where
            not.
        """
        flat = [frame for video in videos for frame in video]
        # One black frame stands for a batch without any.
        images = flat or [torch.zeros(3, 32, 32, dtype=torch.uint8)]
        pixels = self.processor(
            images=images, input_data_format="channels_first", return_tensors="pt"
        )["pixel_values"]
        lengths = torch.tensor([len(video) for video in videos])
        mask = torch.arange(max(1, int(lengths.max()))) < lengths[:, None]
        frames = pixels.new_zeros(*mask.shape, *pixels.shape[1:])
        if flat:
            frames[mask] = pixels
        return frames, mask.long()
