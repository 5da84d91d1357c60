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
#   VENV      the environment (.venv)
#   WORKERS   processes that run tests (the number of processors, at most 4)
#   EXTRAS    extras of the package to install (test)
#   PYTHON, TORCH_INDEX, CONSTRAINTS   as in examples/environment.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${VENV:-$root/.venv}
extras=${EXTRAS:-test}
. "$root/examples/environment.sh"
cd "$root"
libraries=$venv/backbone-libraries

install() {
    echo "Installing the package and what the tests need into $venv, from pip: with a CPU build of PyTorch" \
        "about 2 GB on the disk (with CUDA's libraries several more), some minutes."
    if [ -n "${TORCH_INDEX:-}" ]; then pip_install --index-url "$TORCH_INDEX" torch; fi
    # In a folder that only the tests look into: tests/support/backbone_libraries.py says why.
    rm -rf "$libraries"
    pip_install --quiet --no-deps --target "$libraries" -r tests/backbone-libraries.txt &
    trap "kill $! 2>/dev/null; exit 1" INT TERM # a script's background processes ignore Ctrl-C
    pip_install --editable ".[$extras]" || {
        status=$?
        wait # or the other pip would go on, behind the prompt
        exit $status
    }
    wait $!
}
install_once "tests-${extras//,/-}" tests/backbone-libraries.txt

export BACKBONE_LIBRARIES=$libraries
workers=${WORKERS:-$("$venv/bin/python" -c 'import os; print(min(4, os.cpu_count() or 1))')}
# The caller's -m wins over ours: pytest takes the last one. A process that runs out of tests takes
# over another's, so that the long ones, which stand together, are not left to one.
exec "$venv/bin/python" -m pytest -n "$workers" --dist worksteal -m 'not slow' "$@"
