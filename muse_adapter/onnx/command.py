"""The command `muse-adapter export FOLDER --to FILE`."""

from __future__ import annotations

import argparse
import sys

import torch

from muse_adapter.models import MultiScaleMamba
from muse_adapter.onnx.exporting import export


def add_export(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `export` to the commands."""
    summary = "write a saved head as an ONNX file"
    parser = commands.add_parser(
        "export",
        help=summary,
        description=f"{summary.capitalize()}, with any number of videos and frames and a frame "
        "mask. The file is run by onnxruntime and compared with torch before it gets its name.",
    )
    parser.add_argument("folder", help="of the head, as save_pretrained wrote it; or owner/name")
    parser.add_argument("--to", required=True, metavar="FILE", help="the file, as model.onnx")
    parser.add_argument(
        "--grid",
        type=int,
        nargs=2,
        default=(7, 7),
        metavar=("H", "W"),
        help="patches of a frame (default: 7 7)",
    )
    parser.add_argument("--features", action="store_true", help="give the fused frame features too")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Export; return the exit status."""
    height, width = arguments.grid
    print("exporting, which takes torch a minute or more", file=sys.stderr)
    try:
        head = MultiScaleMamba.from_pretrained(arguments.folder).float()
        config = head.config
        tokens = config.num_prefix_tokens + height * width
        example = torch.empty(1, 1, tokens, config.in_dim or config.dim, device="meta")
        difference = export(
            *(head, arguments.to, example), grid=(height, width), features=arguments.features
        )
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        print(f"muse-adapter export: {error}", file=sys.stderr)
        return 2
    print(f"{arguments.to}: onnxruntime differs from torch by at most {difference:.1e}")
    return 0
