"""The triton backend against `reference`: on a GPU where there is one, else in the interpreter.

The interpreter takes about 30 ms for a step of time, forward and backward, whatever the width.
"""

from __future__ import annotations

import json
import re

import pytest
import torch

import muse_adapter.ops.triton_gpu as backend
from muse_adapter import MultiScaleMamba, ops
from muse_adapter.ops import Direction, bidirectional_scan, causal_conv1d_silu, selective_scan

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
if backend.unavailable(torch.device(DEVICE)) is not None:
    pytest.skip(
        f"backend triton: {backend.unavailable(torch.device(DEVICE))}", allow_module_level=True
    )

pytestmark = pytest.mark.usefixtures("nan_memory")
on_gpu = pytest.mark.skipif(not GPU, reason="needs a GPU: torch finds none")
in_interpreter = pytest.mark.skipif(GPU, reason="shows the interpreter's side, and there is a GPU")

# max|got - expected| / max|expected|. Only the order of sums differs; the GPU's exponential of
# float32 is good to 2 units in the last place, and a state remembers hundreds of them.
BOUND = {torch.float64: 1e-11, torch.float32: 5e-5 if GPU else 1e-5}


def compare(got, expected, bound):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].shape == value.shape and got[name].dtype == value.dtype, name
        error = (got[name] - value).abs().max().item() / max(value.abs().max().item(), 1e-30)
        assert error <= bound, f"{name} is off by {error:.1e}"  # NaN fails too


def normal(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=torch.float64).to(DEVICE, dtype)


def both_directions(batch, channels, states, lengths, dtype):
    """Two directions, of these lengths, all wanting gradients."""
    directions = []
    for length in lengths:
        tensors = [
            *(normal(batch, length, channels, dtype=dtype) for _ in range(2)),
            -normal(channels, states, dtype=dtype).abs() * 2,
            *(normal(batch, length, states, dtype=dtype) for _ in range(2)),
            *(normal(channels, dtype=dtype) for _ in range(2)),
        ]
        directions.append(Direction(*(tensor.requires_grad_() for tensor in tensors)))
    return directions


def outcome(forward, backward, z, name, seed=1, **options):
    """Output and all gradients of a bidirectional scan."""
    y = bidirectional_scan(forward, backward, z, backend=name, **options)
    torch.manual_seed(seed)
    cotangent = normal(*y.shape, dtype=y.dtype)
    named = {f"forward {k}": v for k, v in forward._asdict().items()}
    if backward is not None:
        named |= {f"backward {k}": v for k, v in backward._asdict().items()}
    named["z"] = z
    gradients = torch.autograd.grad((y * cotangent).sum(), list(named.values()))
    return {"y": y.detach(), **dict(zip(named, gradients, strict=True))}


@pytest.fixture
def small_parts(monkeypatch):
    """Kernels cut even a few steps into segments, chunks and runs."""
    from muse_adapter.ops.triton_gpu import function

    for name, value in (
        ("CHUNK", 6),
        ("SHORTEST", 6),
        ("ENOUGH_FORWARD", 40),
        ("ENOUGH_BACKWARD", 20),
    ):
        monkeypatch.setattr(function, name, value)


@pytest.mark.parametrize(
    ("length", "dtype"),
    [
        (1, torch.float64),
        (2, torch.float64),
        (15, torch.float64),
        (15, torch.float32),
        (63, torch.float32),
        (257, torch.float32),
    ],
    ids=str,
)
def test_both_directions_at_any_length(length, dtype):
    forward, backward = both_directions(1, 6, 3, (length, length), dtype)
    z = normal(1, length, 6, dtype=dtype).requires_grad_()
    expected = outcome(forward, backward, z, "reference")
    compare(outcome(forward, backward, z, "triton"), expected, BOUND[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("reverse", [True, False], ids=["reverse", "forward"])
@pytest.mark.parametrize("length", [3060, 1000])
def test_long_sequences(length, reverse):
    arguments = one_direction(length, channels=6, batch=1, dtype=torch.float32)
    options = {"delta_softplus": True, "reverse": reverse}
    expected = one_outcome(arguments, "reference", **options)
    compare(one_outcome(arguments, "triton", **options), expected, BOUND[torch.float32])


@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
@pytest.mark.parametrize("length", [5, 6, 7, 13], ids=lambda length: f"{length} of 6")
def test_ends_of_segments_and_chunks(small_parts, length, reverse):
    """A length just below, at and above the end of a part; last states, too."""
    arguments = one_direction(length)
    options = {"delta_softplus": True, "reverse": reverse}
    expected = one_outcome(arguments, "reference", **options)
    compare(one_outcome(arguments, "triton", **options), expected, 1e-11)


def one_direction(
    length, *, channels=8, B="variable", C="variable", without=(), batch=2, states=3,
    dtype=torch.float64,
):  # fmt: skip
    """Arguments of `selective_scan`."""
    shapes = {
        "constant": (channels, states),
        "variable": (batch, states, length),
        "grouped": (batch, 2, states, length),
        "one each": (batch, channels, states, length),
    }
    arguments = {
        "u": normal(batch, channels, length),
        "delta": normal(batch, channels, length),
        "A": -normal(channels, states).abs() * 2,
        "B": normal(*shapes[B]),
        "C": normal(*shapes[C]),
        "D": normal(channels),
        "z": normal(batch, channels, length),
        "delta_bias": normal(channels),
    }
    wanted = {k: None if k in without else v.to(dtype) for k, v in arguments.items()}
    return {k: None if v is None else v.requires_grad_() for k, v in wanted.items()}


def one_outcome(arguments, name, **options):
    """Output, last state and all gradients of `selective_scan`."""
    y, state = selective_scan(**arguments, return_last_state=True, backend=name, **options)
    torch.manual_seed(1)
    loss = (y * normal(*y.shape)).sum() + (state * normal(*state.shape)).sum()
    inputs = {key: value for key, value in arguments.items() if value is not None}
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    return {"y": y, "state": state, **dict(zip(inputs, gradients, strict=True))}


@pytest.mark.parametrize(
    ("B", "C", "without", "softplus"),
    [
        ("grouped", "grouped", (), True),
        ("constant", "constant", (), True),
        ("constant", "variable", ("D",), True),
        ("variable", "grouped", ("z",), True),
        ("one each", "constant", ("delta_bias",), True),
        ("variable", "variable", ("D", "z", "delta_bias"), True),
        ("variable", "variable", (), False),
        ("grouped", "constant", ("D", "z", "delta_bias"), False),
    ],
)
def test_matrices_and_optional_arguments(small_parts, B, C, without, softplus):
    arguments = one_direction(9, B=B, C=C, without=without)
    if not softplus:  # negative steps grow without bound
        with torch.no_grad():
            for name in ("delta", "delta_bias"):
                if arguments[name] is not None:
                    arguments[name].abs_()
    options = {"delta_softplus": softplus, "reverse": True}
    expected = one_outcome(arguments, "reference", **options)
    compare(one_outcome(arguments, "triton", **options), expected, 1e-11)


@pytest.mark.parametrize("used", ["y", "state"])
def test_one_result_used(used):
    arguments = one_direction(7)

    def gradients(name):
        y, state = selective_scan(**arguments, return_last_state=True, backend=name)
        wanted = {"y": y, "state": state}[used]
        inputs = [v for k, v in arguments.items() if used == "y" or k not in ("z", "C", "D")]
        got = torch.autograd.grad(wanted.square().sum(), inputs)
        return dict(enumerate(got))

    compare(gradients("triton"), gradients("reference"), 1e-11)


@pytest.mark.parametrize("cut", [13, 7], ids=["whole", "forward cut"])
def test_lengths_and_positions(small_parts, cut):
    """Padding holds NaN; a position may be wanted twice."""
    forward, backward = both_directions(3, 6, 3, (cut, 13), torch.float64)
    lengths = torch.tensor([13, 0, 8], device=DEVICE)
    positions = torch.tensor([[0, 3, 6], [1, 2, 0], [6, 0, 6]], device=DEVICE)
    z = normal(3, 3, 6).requires_grad_()
    options = {"lengths": lengths, "positions": positions}
    expected = outcome(forward, backward, z, "reference", **options)
    spoilt = []
    for direction in (forward, backward):
        behind = torch.arange(direction.x.shape[1], device=DEVICE) >= lengths.unsqueeze(1)
        spoilt.append(
            Direction(*(
                v.detach().masked_fill(behind[..., None], float("nan")).requires_grad_()
                if v.dim() == 3 else v
                for v in direction
            ))
        )  # fmt: skip
    compare(outcome(*spoilt, z, "triton", **options), expected, 1e-11)


def test_lengths_without_positions():
    forward, backward = both_directions(2, 6, 3, (9, 9), torch.float64)
    z = normal(2, 9, 6).requires_grad_()
    lengths = torch.tensor([4, 9], device=DEVICE)
    expected = outcome(forward, backward, z, "reference", lengths=lengths)
    compare(outcome(forward, backward, z, "triton", lengths=lengths), expected, 1e-11)


@pytest.mark.parametrize("shape", [(0, 5), (2, 0)], ids=["no videos", "no tokens"])
def test_nothing_to_scan(shape):
    x = normal(*shape, 6).requires_grad_()
    gain, weight = normal(*shape, 4), normal(6)
    direction = Direction(x, x, -normal(6, 4).abs(), gain, gain, weight, weight)
    y = bidirectional_scan(direction, direction, x, backend="triton")
    assert y.shape == torch.autograd.grad(y.sum(), x)[0].shape == x.shape


def test_forward_direction_alone():
    forward, _ = both_directions(2, 6, 3, (9, 9), torch.float64)
    z = normal(2, 9, 6).requires_grad_()
    expected = outcome(forward, None, z, "reference")
    compare(outcome(forward, None, z, "triton"), expected, 1e-11)


def test_views_of_one_projection():
    """What the mixer gives: B and C lie in one tensor with the low rank of delta."""
    (forward,) = both_directions(2, 40, 16, (5,), torch.float64)
    joined = torch.cat([forward.B, forward.C, normal(2, 5, 3)], dim=-1).detach().requires_grad_()
    z = normal(2, 5, 40).requires_grad_()

    def gradient(name):
        B, C, _ = joined.split((16, 16, 3), dim=-1)
        y = bidirectional_scan(forward._replace(B=B, C=C), None, z, backend=name)
        return {"y": y, "joined": torch.autograd.grad(y.square().sum(), joined)[0]}

    compare(gradient("triton"), gradient("reference"), 1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_costs_the_rounding_of_results(dtype):
    directions = both_directions(2, 6, 4, (9, 9), torch.float32)
    halves = [
        Direction(*(
            v.detach().to(dtype).requires_grad_() if v.dim() == 3 else v for v in direction
        ))
        for direction in directions
    ]  # fmt: skip
    z = normal(2, 9, 6, dtype=dtype).requires_grad_()
    got = outcome(*halves, z, "triton")
    assert got["y"].dtype == got["forward x"].dtype == got["backward B"].dtype == dtype
    wide = [Direction(*(v.detach().double().requires_grad_() for v in half)) for half in halves]
    wide_z = z.detach().double().requires_grad_()
    y = bidirectional_scan(*wide, wide_z, backend="reference")
    torch.manual_seed(1)
    cotangent = normal(*y.shape, dtype=dtype).double()
    named = {f"{side} {k}": v for side, d in zip(("forward", "backward"), wide, strict=True)
             for k, v in d._asdict().items()} | {"z": wide_z}  # fmt: skip
    gradients = torch.autograd.grad((y * cotangent).sum(), list(named.values()))
    expected = {"y": y.detach(), **dict(zip(named, gradients, strict=True))}
    compare({k: v.double() for k, v in got.items()}, expected, 3 * torch.finfo(dtype).eps)


@pytest.mark.parametrize(
    ("length", "taps", "end", "directions"),
    [(9, 4, None, 2), (9, 4, 2, 2), (2, 4, None, 2), (130, 2, 100, 2), (5, 1, 3, 2), (7, 3, 5, 1)],
)
def test_convolutions(length, taps, end, directions):
    x = normal(2, length, 6).requires_grad_()
    weights = [
        (normal(6, 1, taps).requires_grad_(), normal(6).requires_grad_()) for _ in range(directions)
    ]
    named = {"x": x, **{f"{i} {j}": v for i, w in enumerate(weights) for j, v in enumerate(w)}}

    def run(name):
        y = causal_conv1d_silu(x, weights, end=end, backend=name)
        torch.manual_seed(1)
        loss = sum((part * normal(*part.shape)).sum() for part in y)
        gradients = torch.autograd.grad(loss, list(named.values()))
        return {**dict(enumerate(y)), **dict(zip(named, gradients, strict=True))}

    compare(run("triton"), run("reference"), 1e-11)


def test_nan_stays_in_its_video_and_behind():
    arguments = {k: v.detach() for k, v in one_direction(9).items()}
    clean = selective_scan(**arguments, delta_softplus=True, backend="triton")
    arguments["u"][1, :, 5] = float("nan")
    y = selective_scan(**arguments, delta_softplus=True, backend="triton")
    assert torch.equal(y[0], clean[0]) and torch.equal(y[1, :, :5], clean[1, :, :5])
    assert y[1, :, 5:].isnan().all()


def test_step_sizes_over_their_range():
    """Softplus of the kernels is torch's, from where it vanishes to where it is the identity.

    Torch's own is the identity from 20 on, which is 2e-12 off at the next point of the ramp. In
    float32 the exponent of 2 is rounded: at -60, to half a unit of 87, 4e-6.
    """
    arguments = one_direction(2, channels=32, batch=1)
    arguments["delta_bias"] = None
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 4e-6)):
        ramp = torch.linspace(-60, 60, 64, device=DEVICE).reshape(1, 32, 2)
        given = {k: None if v is None else v.detach().to(dtype) for k, v in arguments.items()}
        given |= {"A": torch.zeros_like(given["A"]), "u": torch.ones_like(given["u"]), "D": None}
        given |= {"delta": ramp.to(dtype), "z": None}
        given["B"] = given["C"] = torch.ones_like(given["B"])
        # With A = 0 the first output is S dt.
        y = selective_scan(**given, delta_softplus=True, backend="triton")[0, :, 0]
        expected = 3 * torch.nn.functional.softplus(ramp[0, :, 0].double())
        assert ((y.double() - expected) / expected).abs().max() < bound


@pytest.mark.parametrize("part", ["scan", "gate", "convolution"])
def test_a_second_derivative_is_refused_by_name(part):
    (forward,) = both_directions(1, 4, 2, (3,), torch.float64)
    z = normal(1, 3, 4).requires_grad_()
    conv = (normal(4, 1, 2).requires_grad_(), normal(4).requires_grad_())
    if part == "convolution":
        (y,) = causal_conv1d_silu(z, [conv], backend="triton")
    else:
        y = bidirectional_scan(forward, None, z, backend="triton")
    wanted = forward.x if part == "scan" else z
    (gradient,) = torch.autograd.grad(y.sum(), wanted, create_graph=True)
    with pytest.raises(RuntimeError, match=r"triton backend .* no second derivative"):
        torch.autograd.grad(gradient.sum(), wanted)


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("sides", [1, 2])
def test_the_operators_keep_torchs_rules(sides, keep):
    """Schema, fake results and gradients, as torch.compile and torch.export rely on them."""
    run = torch.ops.muse_adapter
    fields = []
    for length in (2, 3)[:sides]:
        (direction,) = both_directions(2, 4, 3, (length,), torch.float64)
        x, delta, A, B, C, D, bias = (tensor.detach() for tensor in direction)
        fields += [x, delta, A, B.unsqueeze(2), C.unsqueeze(2), D, bias]
    if keep:
        fields = [tensor.requires_grad_() for tensor in fields]
    lengths = torch.tensor([2, 1], device=DEVICE)
    torch.library.opcheck(run.triton_scan.default, (fields, lengths, 0b10, True, keep))
    z = normal(2, 2, 4).requires_grad_(keep)
    positions = torch.tensor([[0, 0], [1, 0]], device=DEVICE)
    for places, sizes in ((positions, (2, 3)), (None, (2, 2))):
        y = [normal(2, length, 4).requires_grad_(keep) for length in sizes[:sides]]
        torch.library.opcheck(run.triton_gate.default, (z, places, y, keep))
    x = normal(2, 3, 4).requires_grad_(keep)
    weights = [normal(*shape).requires_grad_(keep) for shape in ((4, 1, 2), (4,)) * sides]
    torch.library.opcheck(run.triton_convolutions.default, (x, weights, 2))


def test_a_compiled_head_is_one_graph_forward_and_backward():
    head = MultiScaleMamba(dim=8, depth=2, scales=(1.0,), dropout=0, init="release").to(DEVICE)
    tokens, mask = normal(2, 1, 5, 8, dtype=torch.float32), torch.ones(2, 1, dtype=torch.bool)
    compiled = torch.compile(head, fullgraph=True, backend="aot_eager")

    def run(model):
        head.zero_grad()
        with ops.use_backend("triton"):
            video = model(tokens, mask.to(DEVICE))
            video.sum().backward()
        return {"video": video, **{k: v.grad.clone() for k, v in head.named_parameters()}}

    compare(run(compiled), run(head), 1e-5)


def test_head():
    """The whole head, masks included, as on the torch backend."""
    head = MultiScaleMamba(dim=8, depth=1, scales=(1.0,), init="release").to(DEVICE).double().eval()
    tokens = normal(2, 2, 5, 8)
    mask = torch.tensor([[1, 1], [1, 0]])

    def run(name):
        head.zero_grad()
        with ops.use_backend(name):
            video = head(tokens, mask.to(DEVICE))
        video.square().sum().add(video.sum()).backward()
        return {"video": video, **{k: v.grad for k, v in head.named_parameters()}}

    compare(run("triton"), {k: v.clone() for k, v in run("torch").items()}, 1e-10)


def test_says_why_it_cannot_run(monkeypatch):
    assert "meta" in backend.unavailable(torch.device("meta"))
    with monkeypatch.context() as context:
        context.setattr(backend, "_interpreted", lambda: False)
        assert "got cpu" in backend.unavailable(torch.device("cpu"))
        context.setattr(torch.cuda, "is_available", lambda: False)
        assert "torch finds no GPU" in backend.unavailable()
        assert "TRITON_INTERPRET=1" in backend.unavailable()
    with monkeypatch.context() as context:
        context.setattr(backend, "_load_error", lambda: "triton does not load (x)")
        assert backend.unavailable() == "triton does not load (x)"
    monkeypatch.setattr(backend.importlib.util, "find_spec", lambda name: None)
    assert backend.unavailable() == "triton is not installed: pip install 'muse-adapter[triton]'"


@in_interpreter
def test_the_interpreter_is_never_chosen_automatically(monkeypatch):
    monkeypatch.delenv(ops.dispatch.ENVIRONMENT, raising=False)
    monkeypatch.setattr("muse_adapter.ops.numba_cpu.unavailable", lambda device=None: "hidden")
    assert ops.backends("cpu")["triton"].available
    assert ops.backend_for(torch.device("cpu")) == "torch"


# Without a GPU kernels can still be compiled for one. In a process of its own, since here they are
# the interpreter's.
COMPILE = """
    import json, re, subprocess, sys, tempfile
    import triton, triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from muse_adapter.ops.triton_gpu import backward, convolution, forward, function, gate

    HALF = set("x x0 x1 delta0 delta1 B0 B1 C0 C1 dx0 dx1 ddelta0 ddelta1 z out dout dz".split())
    CONVOLVED = {"y0", "y1", "dy0", "dy1", "dx"}
    SIZES = set("L0 L1 L P end batch segment segments backwards from_last B_time B_channels "
                "C_time C_channels".split())
    CONSTANTS = dict(
        E=512, S=16, STATES=16, BLOCK=function.BLOCK, CHUNK=function.CHUNK, RUN=function.RUN,
        TYPE=tl.float32, SOFTPLUS=True, MASKED=False, B_CONSTANT=False, C_CONSTANT=False,
        ENTERED=True, KEPT=True, GIVEN=False, BOTH=True, PLACED=False, TAPS=4,
    )

    def constants(module, name):
        more = {"WIDTH": gate.WIDTH} if module is gate else {"WIDTH": convolution.WIDTH}
        if name == "convolve_backward":
            more = {"WIDTH": convolution.CHANNELS}
        return {**CONSTANTS, "STEPS": convolution.STEPS, **more}

    def compiled(module, name, target):
        kernel = getattr(module, name)
        known, signature, values, aligned = constants(module, name), {}, {}, {}
        half = HALF | (CONVOLVED if module is convolution else {"total"})
        for index, parameter in enumerate(kernel.params):
            key = parameter.name
            if parameter.is_constexpr:
                signature[key], values[key] = "constexpr", known[key]
            elif key in SIZES:
                signature[key] = "i32"
            else:
                signature[key] = {"lengths": "*i32", "positions": "*i64"}.get(
                    key, "*bf16" if key in half else "*fp32")
                aligned[(index,)] = [["tt.divisibility", 16]]
        source = ASTSource(fn=kernel, signature=signature, constexprs=values, attrs=aligned)
        options = dict(getattr(module, "OPTIONS", function.OPTIONS))
        return triton.compile(source, target=target, options=options)

    def usage(kernel):
        if "amdgcn" in kernel.asm:
            text = kernel.asm["amdgcn"]
            numbers = {"REG": "NumVgprs", "STACK": "ScratchSize", "LOCAL": "vgpr_spill_count"}
            return {k: int(re.search(v + r": *(\\d+)", text)[1]) for k, v in numbers.items()} | {
                "atomics": "atomic" in text}
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(kernel.asm["cubin"])
            file.flush()
            tool = triton.knobs.nvidia.cuobjdump.path
            done = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True)
        found = re.findall(r"(REG|STACK|SHARED|LOCAL):(\\d+)", done.stdout)
        return {k: int(v) for k, v in found} | {"atomics": "atom" in kernel.asm["ptx"]}

    kernels = [
        (forward, "summaries"), (forward, "carries"), (forward, "outputs"),
        (backward, "gradient_summaries"), (backward, "gradients"),
        (gate, "gate_forward"), (gate, "gate_backward"),
        (convolution, "convolve_forward"), (convolution, "convolve_backward"),
    ]
    platform, arch, lanes = sys.argv[1:]
    target = GPUTarget(platform, int(arch) if arch.isdigit() else arch, int(lanes))
    print(json.dumps({name: usage(compiled(module, name, target)) for module, name in kernels}))
"""


@pytest.mark.parametrize(
    "target",
    [("cuda", "80", "32"), ("cuda", "90", "32"), ("hip", "gfx942", "64")],
    ids=lambda target: target[1],
)
def test_registers_and_spills(run_python, tmp_path, target):
    """Compiled for GPUs of two makers: nothing spills, and no sum is left to chance."""
    pytest.importorskip("triton", "3.9", reason="the compiler's interface of triton 3.9")
    done = run_python(COMPILE, *target, TRITON_INTERPRET="0", TRITON_CACHE_DIR=str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads(re.search(r"^\{.*\}$", done.stdout, re.MULTILINE)[0])
    print(json.dumps(found, indent=1))
    assert len(found) == 9
    for name, usage in found.items():
        assert usage["STACK"] == usage["LOCAL"] == 0, f"{name} spills: {usage}"
        assert 0 < usage["REG"] <= 255 and not usage["atomics"], name
    # Programs of the forward kernels that are to fit on a scheduler: 4; of the backward kernel: 2.
    assert all(found[name]["REG"] <= 128 for name in ("summaries", "carries", "outputs"))


@on_gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("length", [63, 257, 1000, 3060])
def test_large_on_gpu(length, dtype):
    """The width of the paper, filled chips and all segments, against `torch` in float64."""
    directions = both_directions(2, 512, 16, (length, length), torch.float32)
    given = [
        Direction(*(
            v.detach().to(dtype).requires_grad_() if v.dim() == 3 else v for v in direction
        ))
        for direction in directions
    ]  # fmt: skip
    z = normal(2, length, 512, dtype=dtype).requires_grad_()
    got = outcome(*given, z, "triton")
    again = outcome(*given, z, "triton")
    assert all(torch.equal(got[name], again[name]) for name in got), "not deterministic"
    wide = [Direction(*(v.detach().double().requires_grad_() for v in d)) for d in given]
    wide_z = z.detach().double().requires_grad_()
    y = bidirectional_scan(*wide, wide_z, backend="torch")
    torch.manual_seed(1)
    cotangent = normal(*y.shape, dtype=dtype).double()
    gradients = torch.autograd.grad((y * cotangent).sum(), [*wide[0], *wide[1], wide_z])
    expected = dict(zip(got, (y.detach(), *gradients), strict=True))
    bound = 3 * max(torch.finfo(dtype).eps, 1e-5)
    compare({k: v.double() for k, v in got.items()}, expected, bound)


@on_gpu
def test_head_on_gpu_never_waits_for_the_host_and_replays():
    """No synchronisation in the forward pass; a CUDA graph gives the same bits."""
    head = MultiScaleMamba(dim=64, depth=2, init="release").to("cuda").eval()
    tokens = torch.randn(2, 3, 50, 64, device="cuda")
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]], device="cuda")
    assert ops.backend_for(torch.device("cuda")) == "triton"
    with torch.no_grad():
        expected = head(tokens, mask)  # compiles
        torch.cuda.set_sync_debug_mode("error")
        try:
            assert torch.equal(head(tokens, mask), expected)
        finally:
            torch.cuda.set_sync_debug_mode("default")
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            captured = head(tokens, mask)
        graph.replay()
    assert torch.equal(captured, expected)


@on_gpu
def test_training_step_under_autocast_and_deterministic_algorithms():
    head = MultiScaleMamba(dim=64, depth=2, init="release").to("cuda").train()
    tokens = torch.randn(2, 3, 50, 64, device="cuda")
    torch.use_deterministic_algorithms(True)
    gradients = []
    for _ in range(2):
        torch.manual_seed(0)
        head.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            loss = head(tokens).sum()
        loss.backward()
        gradients.append([parameter.grad.clone() for parameter in head.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
