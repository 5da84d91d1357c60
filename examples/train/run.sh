#!/usr/bin/env bash
# Trains on a standard data set, on a machine that has nothing but Python 3.10 or newer.
#
#   examples/train/run.sh msrvtt --annotations FOLDER --videos FOLDER --model CLIP --output FOLDER
#   examples/train/run.sh --help             anything else `python -m examples.train` takes
#
# The environment is the quickstart's with a few libraries more, made in the same way, with the same variables;
# see examples/quickstart/run.sh.
#
#   PROCESSES   how many are started; each takes a GPU if there is one (default: the number of GPUs, or 1)
set -euo pipefail
if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    IFS=, read -ra visible <<<"$CUDA_VISIBLE_DEVICES"
    gpus=${#visible[@]}
else
    gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
fi
processes=${PROCESSES:-$((gpus > 1 ? gpus : 1))}
if [ "$processes" -gt 1 ]; then
    export LAUNCH="torch.distributed.run --standalone --nproc-per-node $processes -m"
fi
export EXAMPLE=examples.train EXTRAS=cpu,train,bench TRAIN_COMMAND=${BASH_SOURCE[0]}
exec "$(dirname "${BASH_SOURCE[0]}")/../quickstart/run.sh" "$@"
