"""Parts of the models: tokens, pyramid, sequence, residual layers with their mixers, pooling."""
