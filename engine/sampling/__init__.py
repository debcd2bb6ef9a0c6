"""The parts of the sampler: penalties, the choice of a token, log probabilities."""
