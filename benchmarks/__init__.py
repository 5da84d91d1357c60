"""What the head and its kernels cost, in time, memory and operations.

Commands, each a module run with `python -m`:

    benchmarks              every head over the length of videos, and the evaluation as a whole
    benchmarks.head         the head against attention and its floor; what each saving gains
    benchmarks.scan         the backends of the scan
    benchmarks.ablation     what each optimisation of the CPU kernels buys the head
    benchmarks.shared_machine  whose threads lose beside a busy process, and which setting helps
    benchmarks.decoding     reading video files beside other libraries
    benchmarks.streaming    a head on videos in chunks, beside whole videos
    benchmarks.onnx         a head in onnxruntime, beside the same head in torch
    benchmarks.search       searching an index of videos, beside faiss
    benchmarks.milvus       searching an index in Milvus
    benchmarks.scale        what 10 million and 1 billion segments need, from measured parts
    benchmarks.retrieval    search from coarse to fine beside scorers of all videos
    benchmarks.gpu          the Triton kernels on a GPU, in parts (`benchmarks/gpu_day.sh`)
    benchmarks.peak_memory  peak of one training step
    benchmarks.report       documents and plots from the kept figures in `results/`

What they share, each file importing only files above it:

    machine      machine description, figures in a file
    measure      timer, memory meter
    isolated     a function in a process of its own
    correctness  agreement of results, without which no time is given
    kept_rows    rows of figures that several calls of a benchmark collect
    milvus_server  a Milvus server of this machine, which ends with the benchmark
    heads        every head over length: how each is built, what it is run on, what is counted
"""
