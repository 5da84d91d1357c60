"""A complete retrieval project around the head: corpus, training, evaluation, search."""
