"""Show, write, reverse or check the patch of a CLIP4Clip checkout: `apply.py PATH [options]`.

The same as `muse-adapter patch clip4clip PATH [options]`.
"""

import sys

from muse_adapter.patching.command import main

if __name__ == "__main__":
    sys.exit(main("clip4clip"))
