"""The fields of a collection, and its index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MAX_TEXT = 65535  # bytes of a VARCHAR
MAX_CHUNKS = 4096  # elements of an ARRAY


def make_schema(dim: int, frame_features: bool) -> Any:
    """Return the schema of a collection.

    Args:
        dim: D, width of the vectors.
        frame_features: Whether there are frame features.
    """
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    # Of the first segment, the hash of the video's path; of others, `addition`/number.
    schema.add_field("id", DataType.VARCHAR, max_length=64, is_primary=True)
    # Hash of path and content: what one call of `append` added, or others with the same result.
    schema.add_field("addition", DataType.VARCHAR, max_length=64)
    schema.add_field("name", DataType.VARCHAR, max_length=MAX_TEXT)
    schema.add_field("number", DataType.INT64)  # of the segment
    schema.add_field("count", DataType.INT64)  # of segments of the video
    schema.add_field("start", DataType.DOUBLE)
    schema.add_field("end", DataType.DOUBLE)
    schema.add_field("written", DataType.INT64)  # seconds since 1970
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=dim)
    if frame_features:
        schema.add_field("num_frames", DataType.INT64)
        # Bytes of half precision in base64, in the row of the segment: no second collection can
        # lack some of them.
        schema.add_field(
            "frames",
            DataType.ARRAY,
            element_type=DataType.VARCHAR,
            max_length=MAX_TEXT,
            max_capacity=MAX_CHUNKS,
        )
    return schema


def make_index(kind: str, build: Mapping[str, int]) -> Any:
    """Return the index of the vectors.

    Args:
        kind: Its name in Milvus.
        build: Parameters of building it.
    """
    from pymilvus import MilvusClient

    parameters = MilvusClient.prepare_index_params()
    parameters.add_index("vector", index_type=kind, metric_type="IP", params=dict(build))
    return parameters
