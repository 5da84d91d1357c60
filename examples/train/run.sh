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
gpus=$( (nvidia-smi -L 2>/dev/null || true) | wc -l)
processes=${PROCESSES:-$((gpus > 1 ? gpus : 1))}
if [ "$processes" -gt 1 ]; then
    export LAUNCH="torch.distributed.run --standalone --nproc-per-node $processes -m"
fi
export EXAMPLE=examples.train EXTRAS=cpu,train,bench TRAIN_COMMAND=${BASH_SOURCE[0]}
exec "$(dirname "${BASH_SOURCE[0]}")/../quickstart/run.sh" "$@"
