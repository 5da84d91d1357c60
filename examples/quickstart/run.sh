#!/usr/bin/env bash
# Runs the quickstart, on a machine that has nothing but Python 3.10 or newer.
#
#   examples/quickstart/run.sh                       the default run
#   examples/quickstart/run.sh search "a red circle" anything else `python -m examples.quickstart` takes
#
# Makes .venv in the root of the repository if there is none, and installs the package there with what
# the quickstart needs, under the versions of constraints.txt. A second call installs only what has changed.
#
#   VENV      the environment (.venv in the root)
#   PYTHON, TORCH_INDEX, CONSTRAINTS   as in examples/environment.sh
#
# The run.sh of other examples set EXTRAS, EXAMPLE and LAUNCH.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
venv=${VENV:-$root/.venv}
extras=${EXTRAS:-cpu,hub,video,bench}
. "$root/examples/environment.sh"

install() {
    echo "Setting up $venv: PyTorch, numba, PyAV, transformers and matplotlib, from pip, once."
    echo "With a CPU build of PyTorch: about 1.6 GB on the disk, one to a few minutes, most of them the download."
    # PyPI's torch for Linux on x86 brings CUDA's libraries, whether there is a GPU or not.
    if [ -z "${TORCH_INDEX:-}" ] && [ "$(uname -sm)" = "Linux x86_64" ] && ! command -v nvidia-smi >/dev/null &&
        ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        echo "There is no NVIDIA GPU here, but pip's usual PyTorch for Linux brings CUDA's libraries: a download of 2.6 GB."
        echo "For the CPU build, press Ctrl-C and start again with TORCH_INDEX=ADDRESS, the address that pytorch.org,"
        echo "\"Get Started\", shows after --index-url for Pip and CPU. Where pip finds a CPU build anyway, just wait."
    fi
    if [ -n "${TORCH_INDEX:-}" ]; then pip_install --index-url "$TORCH_INDEX" torch; fi
    pip_install --editable ".[$extras]" transformers
}
install_once "${extras//,/-}"

# glibc gives every large buffer back to the system and asks for it again in the next step; keep them.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}

export QUICKSTART_COMMAND=${BASH_SOURCE[0]}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# shellcheck disable=SC2086
exec "$venv/bin/python" -m ${LAUNCH:-} "${EXAMPLE:-examples.quickstart}" "$@"
