"""Every head over the length of videos, as `python -m benchmarks` measures them.

Each file imports only files above it:

    baselines    what one would use instead of the head
    variants     the heads by name: how each is built, or why it cannot run here
    workload     cases, presets, and one head on one case
    preload      what the server of isolated processes loads
    definition   each head's agreement with its definition
    flops        operations of a run
    pair_loop    the evaluation: once per pair against once per video
    rows         every head on every case, kept in a file as they come
    curves       cost over length: fitted exponents, crossing lengths, plots
    tables       what the documents show of them
"""
