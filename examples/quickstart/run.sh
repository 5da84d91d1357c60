#!/usr/bin/env bash
# Runs the quickstart, on a machine that has nothing but Python 3.10 or newer.
#
#   examples/quickstart/run.sh                       the default run
#   examples/quickstart/run.sh search "a red circle" anything else `python -m examples.quickstart` takes
#
# Makes .venv in the root of the repository if there is none, and installs the package there with what
# the quickstart needs, under the versions of constraints.txt. A second call installs only what has changed.
#
#   PYTHON    the interpreter that makes the environment (python3)
#   VENV      the environment (.venv in the root)
#   TORCH_INDEX   address that torch is installed from, for a build without CUDA; pytorch.org, "Get Started",
#                 shows the one of the CPU builds (its pip command's --index-url). Empty: pip's own choice
#   CONSTRAINTS   file of the versions to install (constraints.txt); empty: the newest ones
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

python=${PYTHON:-python3}
venv=${VENV:-$root/.venv}
extras=${EXTRAS:-cpu,hub,video,bench}  # EXTRAS, EXAMPLE, LAUNCH: for the run.sh of other examples

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed, $python is $("$python" -V 2>&1). Name another with PYTHON=" >&2
    exit 1
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$venv" || {
        echo "Cannot make $venv. On Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
fi

# pip compiles nothing below: Python must be allowed to keep what it compiles.
unset PYTHONDONTWRITEBYTECODE

# An installation is good for the requirements it was made from, and for this folder.
stamp=$venv/installed-${extras//,/-}
constraints=${CONSTRAINTS-$root/constraints.txt}
wanted=$(cd "$root"; pwd; echo "$constraints"; cat setup.cfg pyproject.toml constraints.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Setting up $venv: PyTorch, numba, PyAV, transformers and matplotlib, from pip, once."
    echo "With a CPU build of PyTorch: about 1.6 GB on the disk, one to a few minutes, most of them the download."
    # PyPI's torch for Linux on x86 brings CUDA's libraries, whether there is a GPU or not.
    if [ -z "${TORCH_INDEX:-}" ] && [ "$(uname -sm)" = "Linux x86_64" ] && ! command -v nvidia-smi >/dev/null &&
        ! "$venv/bin/python" -c 'import torch' 2>/dev/null; then
        echo "There is no NVIDIA GPU here, but pip's usual PyTorch for Linux brings CUDA's libraries: a download of 2.6 GB."
        echo "For the CPU build, press Ctrl-C and start again with TORCH_INDEX=ADDRESS, the address that pytorch.org,"
        echo "\"Get Started\", shows after --index-url for Pip and CPU. Where pip finds a CPU build anyway, just wait."
    fi
    (
        cd "$root"
        # pip hands constraints on to the build of our own wheel by these; its version decides which counts.
        export PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints
        export PIP_DISABLE_PIP_VERSION_CHECK=1
        if [ -n "${TORCH_INDEX:-}" ]; then
            "$venv/bin/python" -m pip install --index-url "$TORCH_INDEX" torch
        fi
        # Python compiles what is imported; to compile every file of torch and transformers takes a minute.
        "$venv/bin/python" -m pip install --no-compile --editable ".[$extras]" transformers
    )
    printf '%s\n' "$wanted" >"$stamp"
fi

# glibc gives every large buffer back to the system and asks for it again in the next step; keep them.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}

export QUICKSTART_COMMAND=${BASH_SOURCE[0]}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
# shellcheck disable=SC2086
exec "$venv/bin/python" -m ${LAUNCH:-} "${EXAMPLE:-examples.quickstart}" "$@"
