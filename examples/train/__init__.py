"""Training on the standard data sets of text-video retrieval, on one process or many.

The files, each importing only files above it:

    settings     everything a run depends on
    data         captions and video files of a data set
    batches      batches in which no video occurs twice
    objective    the loss of a batch
    evaluation   retrieval metrics of a part of the data
    checkpoints  what a run that was killed goes on from
    trainer      the trainer of sentence-transformers, with the paper's optimiser
    run          a whole run: train, choose the best epoch, test once
    __main__     the command line
"""
