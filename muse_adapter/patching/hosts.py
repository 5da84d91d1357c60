"""What the patcher must know of a code base: names only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """Names in a CLIP4Clip-like checkout; forks that renamed something give their own.

    Attributes:
        model_file: The model's file, relative to the checkout.
        model_class: The class of the whole model in it.
        main_files: The main script; the first that exists is taken.
        clip_file: The file of CLIP.
        clip_class: The class of CLIP in it.
        visual_function: The model's method from frames to frame features.
        encode_function: CLIP's method from frames to features.
        args_function: The main script's function that parses the arguments.
        optimizer_function: The main script's function that makes the optimizer.
        optimizer_class: The optimizer it makes.
    """

    model_file: str
    model_class: str
    main_files: tuple[str, ...]
    clip_file: str = "modules/module_clip.py"
    clip_class: str = "CLIP"
    visual_function: str = "get_visual_output"
    encode_function: str = "encode_image"
    args_function: str = "get_args"
    optimizer_function: str = "prep_optimizer"
    optimizer_class: str = "BertAdam"


HOSTS = {
    "clip4clip": Host(
        model_file="modules/modeling.py",
        model_class="CLIP4Clip",
        # X-CLIP carries CLIP4Clip with its main script under the second name.
        main_files=("main_task_retrieval.py", "main_clip4clip.py"),
    ),
    "xclip": Host(
        model_file="modules/modeling_xclip.py",
        model_class="XCLIP",
        main_files=("main_xclip.py",),
    ),
}
