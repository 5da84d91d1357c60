"""Training on the standard data sets of text-video retrieval, on one process or many.

The files, each importing only files above it:

    settings     everything a run depends on
    folder       what the folder of a run says of it
    processes    what the processes of a run tell each other, and which of them reports an error
    data         captions and video files of a data set
    unreadable   videos that cannot be read, found before a run begins
    batches      batches in which no video occurs twice
    token_list   which videos a folder of kept tokens is of
    tokens       tokens of a frozen model, kept on the disk
    model        a pretrained model with a new head, that may read kept tokens
    objective    the loss of a batch
    evaluation   retrieval metrics of a part of the data
    checkpoints  what a run that was killed goes on from
    trainer      the trainer of sentence-transformers, with the paper's optimiser
    run          a whole run: train, choose the best epoch, test once
    __main__     the command line
"""
