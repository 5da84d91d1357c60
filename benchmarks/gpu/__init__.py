"""The triton backend on a GPU, in parts that run alone or one after the other.

    bash benchmarks/gpu_day.sh FOLDER          # all of them, at most five minutes
    python -m benchmarks.gpu.scan --json FILE  # one
    python -m benchmarks.gpu.scan --tiny       # on a CPU, by Triton's interpreter, at tiny sizes

Parts, the most important first:

    environment  GPU, driver, versions, and the rates that floors are made of
    correctness  every operator and the head against `torch` in float64, all gradients
    tests        the tests of the repository that a GPU changes
    scan         the scan with its convolutions and gate against its floors, kernel by kernel
    head         the head against flash attention
    tuning       block sizes, warps and segments of the kernels
    published    the scan against mamba-ssm's two calls and flips
    compiled     the head by torch.compile, and replayed as a CUDA graph

What they share: `part` (options, rows, timer), `workload` (inputs of the scan), `floors`, `kernels`
(time by kernel), `cases` (of correctness).
"""
