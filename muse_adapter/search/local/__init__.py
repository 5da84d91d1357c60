"""A table of segments in a folder: exact search over memory-mapped files.

    index.json            manifest: what is valid, replaced with each change
    model.safetensors     what identifies the model
    names-G.bin           names of the videos, UTF-8, one behind the other
    videos-G.bin          a row for each video: ends in the other files, checksums
    segments-G.bin        a row for each segment: start and end in seconds, number of frames
    vectors-G.bin         a vector for each segment, float16
    frames-G.bin          frame features of all segments, float16
    removed-G.bin         numbers of removed videos
    writer.lock           locked by the process that writes

Files only grow, and the manifest says how many bytes of each are valid. A change first writes
behind those bytes, and counts once a new manifest has been renamed into place: after a crash, the
old one stands. Readers map the valid bytes, which nobody changes. `compact` writes the files of a
new generation G and deletes the old ones, whose memory stays with readers that have mapped them.

The files, each importing only files above it:

    manifest   `index.json`
    columns    the other files: packing, appending, mapping
    recall     exact search over a growing table
    table      one state of the table
    lock       one writer at a time
    store      creating, opening, writing
"""

from muse_adapter.search.local.store import LocalStore

__all__ = ["LocalStore"]
