"""Heads and video encoders as ONNX files, for runtimes other than torch."""

from muse_adapter.onnx.exporting import export

__all__ = ["export"]
