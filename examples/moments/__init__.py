"""Partially relevant retrieval from start to end: find the long video that has a moment."""
