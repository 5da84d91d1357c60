# shellcheck shell=bash
# The environment of the examples and of the tests: their run.sh source this, having set `root`, the folder of
# the repository, and `venv`, that of the environment, and define `install`.
#
#   PYTHON    the interpreter that makes the environment (python3)
#   TORCH_INDEX   address that torch is installed from, for a build without CUDA; pytorch.org, "Get Started",
#                 shows the one of the CPU builds (its pip command's --index-url). Empty: pip's own choice
#   CONSTRAINTS   file of the versions to install (constraints.txt); empty: the newest ones

python=${PYTHON:-python3}
constraints=${CONSTRAINTS-$root/constraints.txt}
case $venv in /*) ;; *) venv=$PWD/$venv ;; esac
case $constraints in "" | /*) ;; *) constraints=$PWD/$constraints ;; esac

# pip compiles nothing below: Python must be allowed to keep what it compiles.
unset PYTHONDONTWRITEBYTECODE

make_environment() {
    if "$venv/bin/python" -m pip --version >/dev/null 2>&1; then python=$venv/bin/python; fi
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
        echo "Python 3.10 or newer is needed, $python is $("$python" -V 2>&1). Name another, such as PYTHON=python3.11" >&2
        exit 1
    }
    if [ "$python" != "$venv/bin/python" ]; then
        "$python" -m venv "$venv" || {
            echo "Cannot make $venv. On Debian and Ubuntu: apt install python3-venv" >&2
            exit 1
        }
        rm -f "$venv"/installed-* # of one that was there and is broken
    fi
}

# Python compiles what is imported; to compile every file of torch and transformers takes a minute.
pip_install() {
    # pip hands constraints on to the build of our own wheel by these; its version decides which counts.
    # It would take a space for the end of a path, but not in an address.
    local address=${constraints:+file://${constraints// /%20}}
    PIP_CONSTRAINT=$address PIP_BUILD_CONSTRAINT=$address PIP_DISABLE_PIP_VERSION_CHECK=1 \
        "$venv/bin/python" -m pip install --no-compile "$@"
}

# install_once NAME FILE...: call `install` in the root, unless it was done for this folder and these requirements.
install_once() {
    make_environment
    local stamp=$venv/installed-$1 wanted
    wanted=$(cd "$root" && pwd && echo "$constraints" &&
        cat setup.cfg pyproject.toml ${constraints:+"$constraints"} "${@:2}" | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        rm -f "$stamp"
        (
            cd "$root"
            install
        )
        printf '%s\n' "$wanted" >"$stamp"
    fi
}
