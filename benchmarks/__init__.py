"""What the head and its kernels cost, in time, memory and operations.

Commands, each a module run with `python -m`:

    benchmarks              every head over the length of videos, and the evaluation as a whole
    benchmarks.head         the head against attention and its floor; what each saving gains
    benchmarks.scan         the backends of the scan
    benchmarks.ablation     what each optimisation of the CPU kernels buys the head
    benchmarks.decoding     reading video files beside other libraries
    benchmarks.gpu          the Triton kernels on a GPU
    benchmarks.peak_memory  peak of one training step
    benchmarks.report       documents and plots from the kept figures in `results/`

What they share, each file importing only files above it:

    machine      machine description, figures in a file
    measure      timer, memory meter
    isolated     a function in a process of its own (`preload`: what its server loads)
    baselines    what one would use instead of the head
    variants     the heads by name: how each is built, or why it cannot run here
    workload     cases, presets, and one head on one case
    correctness  agreement of results, without which no time is given
    flops        operations of a run
    pair_loop    the evaluation: once per pair against once per video
    rows         every head on every case, kept in a file as they come
    curves       cost over length: fitted exponents, crossing lengths, plots
"""
