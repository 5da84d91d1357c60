#!/usr/bin/env bash
# Runs the fast tests, on a machine that has nothing but Python 3.10 or newer.
#
#   tests/run.sh                      all fast tests
#   tests/run.sh -m slow              the slow ones
#   tests/run.sh tests/ops            anything else pytest takes
#
# Makes .venv beside this folder if there is none, installs the checkout there with what the tests need,
# under the versions of constraints.txt, and runs pytest. A second call installs only what has changed.
#
#   PYTHON    the interpreter that makes the environment (python3)
#   VENV      the environment (.venv)
#   WORKERS   processes that run tests (the number of processors, at most 4)
#   TORCH_INDEX   address that torch is installed from, such as that of PyTorch's CPU builds: pytorch.org,
#                 "Get Started", shows it as --index-url. Empty: pip's choice, on Linux with CUDA's libraries
#   EXTRAS    extras of the package to install (test)
#   CONSTRAINTS   file of the versions to install (constraints.txt); empty: the newest ones
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
venv=${VENV:-.venv}
cores=$("$python" -c 'import os; print(min(4, os.cpu_count() or 1))')
workers=${WORKERS:-$cores}
extras=${EXTRAS:-test}

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "Python 3.10 or newer is needed, $python is $("$python" -V 2>&1). Name another: PYTHON=python3.11 tests/run.sh" >&2
    exit 1
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    "$python" -m venv "$venv" || {
        echo "Cannot make $venv. On Debian and Ubuntu: apt install python3-venv" >&2
        exit 1
    }
fi

# pip hands constraints on to the build of our own wheel by these; which one counts depends on its version.
constraints=${CONSTRAINTS-$PWD/constraints.txt}
export PIP_CONSTRAINT=$constraints PIP_BUILD_CONSTRAINT=$constraints
export PIP_DISABLE_PIP_VERSION_CHECK=1

# pip compiles nothing below: Python must be allowed to keep what it compiles.
unset PYTHONDONTWRITEBYTECODE

# An installation is good for the requirements it was made from, and for this folder.
stamp=$venv/tests-installed
libraries=$venv/backbone-libraries
wanted=$(pwd; echo "$extras $constraints"; cat setup.cfg pyproject.toml constraints.txt tests/backbone-libraries.txt | cksum)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "Installing the package and what the tests need into $venv, from pip: with a CPU build of PyTorch" \
        "about 2 GB on the disk (with CUDA's libraries several more), some minutes."
    if [ -n "${TORCH_INDEX:-}" ]; then
        "$venv/bin/python" -m pip install --no-compile --index-url "$TORCH_INDEX" torch
    fi
    # In a folder that only the tests look into: tests/support/backbone_libraries.py says why.
    rm -rf "$libraries"
    "$venv/bin/python" -m pip install --quiet --no-compile --no-deps --target "$libraries" \
        -r tests/backbone-libraries.txt &
    # Python compiles what is imported; to compile every file of torch and transformers takes a minute.
    "$venv/bin/python" -m pip install --no-compile --editable ".[$extras]" || {
        status=$?
        wait # or the other pip would go on, behind the prompt
        exit $status
    }
    wait $!
    printf '%s\n' "$wanted" >"$stamp"
fi

export BACKBONE_LIBRARIES=$(cd "$libraries" && pwd)
# The caller's -m wins over ours: pytest takes the last one. A process that runs out of tests takes
# over another's, so that the long ones, which stand together, are not left to one.
exec "$venv/bin/python" -m pytest -n "$workers" --dist worksteal -m 'not slow' "$@"
