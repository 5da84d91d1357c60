"""Search a corpus of videos by text: `VideoIndex`.

The files, each importing only files above it:

    segments      what an index holds and answers
    local/        a store: exact search over memory-mapped files in a folder
    milvus/       a store: a file of Milvus Lite, a server or a cluster
    store         what an index needs of a store, and which store an address means
    documents     videos, whole or in windows, as a model takes them
    models        what an index needs of a model, by duck typing
    identity      which model an index is of
    progress      rate and time left
    adding        reading, embedding, appending
    turns         several processes that add take turns of writing
    second_stage  the order of what was found, by frame features
    saved_models  the model of an index, loaded from where it was saved
    index         `VideoIndex`
    listing       the video files of folders
    pictures      frames of a hit, as the page shows them
    page          what was found, as an HTML page
    commands/     `muse-adapter index` and `search`
"""

from muse_adapter.search.index import VideoIndex
from muse_adapter.search.segments import AddReport, Hit

__all__ = ["AddReport", "Hit", "VideoIndex"]
