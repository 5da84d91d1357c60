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
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

python=${PYTHON:-python3}
venv=${VENV:-$root/.venv}

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

# An installation is good for the requirements it was made from, and for this folder.
stamp=$venv/quickstart-installed
wanted=$(cd "$root"; pwd; cat setup.cfg pyproject.toml constraints.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "installing into $venv ..."
    (
        cd "$root"
        # pip hands constraints on to the build of our own wheel by these; its version decides which counts.
        export PIP_CONSTRAINT=$root/constraints.txt PIP_BUILD_CONSTRAINT=$root/constraints.txt
        export PIP_DISABLE_PIP_VERSION_CHECK=1
        "$venv/bin/python" -m pip install --quiet --editable '.[cpu,hub,video,bench]' transformers
    )
    printf '%s\n' "$wanted" >"$stamp"
fi

# glibc gives every large buffer back to the system and asks for it again in the next step; keep them.
export MALLOC_MMAP_MAX_=${MALLOC_MMAP_MAX_:-0} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-4294967296}

export QUICKSTART_COMMAND=${BASH_SOURCE[0]}
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}
exec "$venv/bin/python" -m examples.quickstart "$@"
