"""A complete retrieval project around the head: corpus, training, evaluation, search."""

try:
    import tqdm  # noqa: F401
except ImportError as error:
    raise ImportError("the quickstart needs tqdm: pip install 'muse-adapter[bench]'") from error
