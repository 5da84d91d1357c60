"""The parts of the head, in the order in which the tokens pass them: pyramid, sequence, block, pool."""
