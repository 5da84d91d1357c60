"""Which model an index is of: by its weights, and by its embedding of a fixed text.

Weights are compared by a few numbers of each tensor, which training changes, and which are read in
milliseconds where a checksum of all would take seconds. Copies in another precision are the same
model.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from muse_adapter.data.token_cache.probe import TOLERANCE
from muse_adapter.search.models import embed_queries, frame_sampling_of, saved_in_of
from muse_adapter.tensor_files import pack_tensors, unpack_tensors

_PROBE = "A dog catches a red ball on the beach, and 3 people laugh."
_NUMBERS = 4  # of each tensor
# Precisions that are told apart, by their position; others compare exactly, as float64.
_DTYPES = torch.float64, torch.float32, torch.float16, torch.bfloat16
_SMALLEST = 2.0**-24  # float16 has no smaller number


def identify(model: Any) -> bytes:
    """Return what identifies a model, as a safetensors file.

    Args:
        model: A model with `encode_query`. If it is a module, or has modules as attributes, their
            weights are compared; otherwise only its embedding of a text is.
    """
    tensors, sampling = dict(_tensors(model)), frame_sampling_of(model)
    place = saved_in_of(model)
    shapes = " ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
    samples = [_sample(tensor) for tensor in tensors.values()]
    return pack_tensors(
        {
            "probe": embed_queries(model, [_PROBE])[0].contiguous(),
            "weights": torch.stack(samples) if samples else torch.empty(0, _NUMBERS).double(),
            "dtypes": torch.tensor([_dtype(t) for t in tensors.values()], dtype=torch.uint8),
        },
        {
            "class": type(model).__name__,
            "names": f"{zlib.crc32(shapes.encode()):08x}",
            "frames": str(sampling and tuple(sampling)),
            # As JSON: names of folders may be no Unicode.
            "saved_in": json.dumps(place),
        },
    )


def check_same(stored: bytes, model: Any) -> None:
    """Check that a model is the one of an index.

    Args:
        stored: Result of `identify`, of the index.
        model: The model.

    Raises:
        ValueError: It is another one, or `stored` is damaged.
    """
    expected, expected_text = unpack_tensors(stored, "the identity of the model")
    given, given_text = unpack_tensors(identify(model), "the identity of the model")
    if difference := (
        _different_text(expected_text, given_text)
        or _different_weights(expected, given)
        or _different_probe(expected, given)
    ):
        raise ValueError(f"the index is of another model: {difference}")


def embedding_width(stored: bytes) -> int:
    """Return the width of the model's embeddings."""
    return len(unpack_tensors(stored, "the identity of the model")[0]["probe"])


def model_class(stored: bytes) -> str:
    """Return the name of the class of a model."""
    return unpack_tensors(stored, "the identity of the model")[1]["class"]


def saved_in(stored: bytes) -> tuple[str, str | None] | None:
    """Return where a model was saved: a folder, or a name on the hub and its commit."""
    text = unpack_tensors(stored, "the identity of the model")[1].get("saved_in", "null")
    place = json.loads(text)
    return None if place is None else (place[0], place[1])


def _different_text(expected: dict[str, str], given: dict[str, str]) -> str | None:
    if expected["names"] != given["names"]:
        return "its weights have other names or shapes"
    if expected["frames"] != given["frames"]:
        return f"(num_frames, fps) is {expected['frames']} there and {given['frames']} now"
    return None


def _different_weights(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str | None:
    one, other = expected["weights"], given["weights"]
    rounding = torch.tensor([0.0, *(torch.finfo(dtype).eps for dtype in _DTYPES[1:])])
    rounding = rounding.double()
    eps = rounding[expected["dtypes"].long()] + rounding[given["dtypes"].long()]
    eps[expected["dtypes"] == given["dtypes"]] = 0
    largest = torch.maximum(one.abs(), other.abs())
    allowed = eps[:, None] * largest + (eps[:, None] > 0) * _SMALLEST
    same = ((one - other).abs() <= allowed) | (one == other) | (one.isnan() & other.isnan())
    count = int((~same.all(1)).sum())
    return f"{count} of {len(one)} tensors of its weights differ" if count else None


def _different_probe(expected: dict[str, Tensor], given: dict[str, Tensor]) -> str | None:
    one, other = expected["probe"], given["probe"]
    if one.shape != other.shape:
        return f"its embeddings have the width {len(one)} there and {len(other)} now"
    coarsest = {_name(each["dtypes"]) for each in (expected, given)}
    error = float((one - other).norm())
    if error <= max(TOLERANCE[name] for name in coarsest):
        return None
    return f"the embeddings of a text differ by {error:.1%} of their norm"


def _name(dtypes: Tensor) -> str:
    coarsest = _DTYPES[max([1, *dtypes.tolist()])]
    return str(coarsest).removeprefix("torch.")


def _tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    modules = {"": model} if isinstance(model, nn.Module) else getattr(model, "__dict__", {})
    for prefix, module in modules.items():
        if isinstance(module, nn.Module):
            for name, tensor in module.state_dict().items():
                if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                    # `torch.compile` gives its own name to what it wraps.
                    yield f"{prefix}.{name}".replace("_orig_mod.", ""), tensor


def _sample(tensor: Tensor) -> Tensor:
    """Return numbers at fixed positions of a tensor, (_NUMBERS,), float64."""
    if not tensor.numel():
        return torch.zeros(_NUMBERS, dtype=torch.float64)
    flat = tensor.detach().reshape(-1)
    last = len(flat) - 1
    positions = [last * (2 * i + 1) // (2 * _NUMBERS) for i in range(_NUMBERS)]
    return flat[torch.tensor(positions, device=flat.device)].to("cpu", torch.float64)


def _dtype(tensor: Tensor) -> int:
    return _DTYPES.index(tensor.dtype) if tensor.dtype in _DTYPES else 0
