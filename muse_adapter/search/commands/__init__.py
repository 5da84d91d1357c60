"""The commands `muse-adapter index` and `muse-adapter search`.

The files, each importing only files above it:

    address     the options that say which index it is
    failures    an error in one line, and the exit status
    processes   those that torchrun has started, which share the work
    indexing    `index`
    searching   `search`
"""

from muse_adapter.search.commands.indexing import add_index
from muse_adapter.search.commands.searching import add_search

__all__ = ["add_index", "add_search"]
