#!/usr/bin/env bash
# Everything to be known of the triton backend on a GPU, in at most five minutes:
#
#     bash benchmarks/gpu_day.sh FOLDER                  # all parts, the most important first
#     bash benchmarks/gpu_day.sh FOLDER scan head        # these parts, in this order
#     bash benchmarks/gpu_day.sh --tiny FOLDER           # the same code on a CPU, at tiny sizes
#
# FOLDER receives `gpu_day.json` and `logs.txt`, kept up to date while the parts run. Needs torch,
# triton, einops, numpy and pytest (with pytest-xdist), and this checkout.
set -u
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
# Parts compile many of the same kernels.
export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/muse-adapter-triton}"
exec "${PYTHON:-python3}" -m benchmarks.gpu "$@"
