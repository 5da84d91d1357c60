"""Names of files, classes and functions of the code bases that can be patched."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """Names in a checkout of CLIP4Clip or a descendant; options override them for forks.

    Attributes:
        model_file: File of the model, relative to the checkout.
        model_class: Class of the whole model in it.
        main_files: Possible names of the main script, of which exactly one must exist.
        clip_file: File of CLIP.
        clip_class: Class of CLIP in it.
        visual_function: Method of the model from frames to frame features.
        encode_function: Method of CLIP from frames to features.
        args_function: Function of the main script that parses the arguments.
        optimizer_function: Function of the main script that builds the optimizer.
        optimizer_class: Class of the optimizer.
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
        # X-CLIP includes CLIP4Clip, with its main script under the second name.
        main_files=("main_task_retrieval.py", "main_clip4clip.py"),
    ),
    "xclip": Host(
        model_file="modules/modeling_xclip.py",
        model_class="XCLIP",
        main_files=("main_xclip.py",),
    ),
}
