"""The parts of the head, in the order the tokens pass them: pyramid, sequence, block, pool."""
