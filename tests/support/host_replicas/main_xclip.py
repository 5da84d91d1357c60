"""A replica of a main script: its arguments and its optimizer."""

from __future__ import annotations

import argparse

from modules.modeling_xclip import XCLIP
from modules.optimization import BertAdam

NO_DECAY = ("bias", "LayerNorm.weight")


def get_args(description="XCLIP"):
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--do_train", action="store_true")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--coef_lr", type=float, default=1.0)
    parser.add_argument("--warmup_proportion", type=float, default=0.1)
    parser.add_argument("--max_words", type=int, default=8)
    parser.add_argument("--max_frames", type=int, default=4)
    parser.add_argument("--train_frame_order", type=int, default=0)
    parser.add_argument("--loose_type", action="store_true")
    parser.add_argument("--sim_header", default="meanP", choices=["meanP", "seqTransf"])

    args = parser.parse_args()
    return args


def prep_optimizer(args, model, num_train_optimization_steps, device, n_gpu, local_rank, coef_lr=1):
    named = list(model.named_parameters())
    groups = []
    for decay in (0.2, 0.0):
        kept = [(n, p) for n, p in named if any(part in n for part in NO_DECAY) == (decay == 0)]
        clip = [p for n, p in kept if "clip." in n]
        rest = [p for n, p in kept if "clip." not in n]
        groups.append({"params": clip, "weight_decay": decay, "lr": args.lr * coef_lr})
        groups.append({"params": rest, "weight_decay": decay})

    optimizer = BertAdam(
        groups,
        lr=args.lr,
        warmup=args.warmup_proportion,
        t_total=num_train_optimization_steps,
        b1=0.9,
        b2=0.98,
        eps=1e-6,
        weight_decay=0.2,
        max_grad_norm=1.0,
    )
    return optimizer, None, model


MODEL = XCLIP
