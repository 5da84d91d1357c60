"""A replica of X-CLIP's model: a video contrast, and a frame contrast without the mask."""

from __future__ import annotations

import torch
from modules.base import PreTrained, contrast, pooled
from modules.module_clip import CLIP
from torch import nn


class XCLIP(PreTrained):
    def __init__(self, cross_config, clip_state_dict, task_config):
        super().__init__(cross_config)
        self.task_config = task_config
        self.loose_type = task_config.loose_type
        self.clip = CLIP(clip_state_dict)
        self.sim_header = task_config.sim_header
        self.frame_mat_weight = nn.Parameter(torch.eye(task_config.max_frames))

        self.apply(self.init_weights)

    def forward(self, input_ids, token_type_ids, attention_mask, video, video_mask=None):
        (text, words), frames = self.get_sequence_visual_output(
            input_ids, token_type_ids, attention_mask, video, video_mask
        )
        similarity, *_ = self.get_similarity_logits(
            text, words, frames, attention_mask, video_mask, loose_type=self.loose_type
        )
        return contrast(similarity)

    def get_sequence_visual_output(self, ids, types, text_mask, video, video_mask, shaped=False):
        words = self.clip.encode_text(ids.flatten(0, -2))
        return (words.mean(1), words), self.get_visual_output(video, video_mask, shaped)

    def get_visual_output(self, video, video_mask, shaped=False, video_frame=-1):
        if shaped is False:
            video_mask = video_mask.view(-1, video_mask.shape[-1])
            video_frame = video.shape[2] * video.shape[3]
            video = video.flatten(0, 3)

        features = self.clip.encode_image(video, video_frame=video_frame).float()
        features = features.view(video_mask.size(0), -1, features.size(-1))
        return features

    def get_similarity_logits(self, text, words, frames, text_mask, video_mask, loose_type=False):
        assert self.sim_header == "meanP", self.sim_header
        video = pooled(frames, video_mask.view(-1, video_mask.shape[-1]))
        text = text / text.norm(dim=-1, keepdim=True)
        each = frames / frames.norm(dim=-1, keepdim=True)  # (B, T, D)
        by_frame = torch.einsum("ad,btd,ts->abs", text, each, self.frame_mat_weight).amax(-1)
        return self.clip.logit_scale.exp() * (text @ video.T + by_frame) / 2, ()
