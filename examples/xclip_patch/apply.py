"""Show, write, reverse or check the patch of an X-CLIP checkout: `apply.py PATH [options]`.

The same as `muse-adapter patch xclip PATH [options]`.
"""

import sys

from muse_adapter.patching.command import main

if __name__ == "__main__":
    sys.exit(main("xclip"))
