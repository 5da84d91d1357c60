#!/usr/bin/env bash
# Trains X-CLIP with the MUSE head at the paper's settings, through torchrun.
#
#   run.sh msrvtt|didemo|activity CHECKOUT DATA OUTPUT [further arguments of main_xclip.py]
#
# DATA holds the annotations and, as MSRVTT_Videos, DiDeMo_Videos or Activity_Videos, the videos.
# Further arguments come last and win (--features_path, --pretrained_clip_name ViT-B/16, ...).
#
#   GPUS        processes on this machine; default: all GPUs
#   BATCH_SIZE  videos a step, over all GPUs
#   EPOCHS      passes over the data
# MUSE publishes the last two for MSR-VTT alone; the defaults of the others are X-CLIP's own.
set -euo pipefail
host=xclip script=main_xclip.py
# Batch and epochs.
msrvtt=(128 5) didemo=(64 20) activity=(112 20)
source "$(dirname "${BASH_SOURCE[0]}")/../train_patched.sh"
