#!/usr/bin/env bash
# Runs the example of moments in long videos, on a machine that has nothing but Python 3.10 or newer.
#
#   examples/moments/run.sh                  the default run
#   examples/moments/run.sh --compare        anything else `python -m examples.moments` takes
#
# The environment is the quickstart's, made in the same way, with the same variables; see
# examples/quickstart/run.sh.
set -euo pipefail
export EXAMPLE=examples.moments MOMENTS_COMMAND=${BASH_SOURCE[0]}
exec "$(dirname "${BASH_SOURCE[0]}")/../quickstart/run.sh" "$@"
