"""A table of segments in Milvus: a file of Milvus Lite, a server or a cluster.

A collection, named as the index, has a row for each segment. What is fixed, such as the settings
and the identity of the model, stands in its properties, so that it is created in one step.

Milvus has no transactions. So a video is in the table once its first row is, which is written last,
and no longer once that is deleted, which happens first. The other rows of a video are named by a
hash of its content: rows of an interrupted or a concurrent addition are never taken for those of
another one. Everything can be repeated without effect, and any number of processes write, except
during `compact`. A remover that dies between its two deletions, while another process adds the same
content, can leave that video with its first segment only, which `verify` finds.

The files, each importing only files above it:

    address   what an address says: server, database, credentials, options
    schema    fields of a row
    rows      videos as rows, and back
    client    calls that are tried again for a limited time, and their errors
    table     searching
    store     creating, opening, writing
"""

from muse_adapter.search.milvus.address import is_milvus_address
from muse_adapter.search.milvus.store import MilvusStore

__all__ = ["MilvusStore", "is_milvus_address"]
