"""Stacked models: families of relaxed categoricals, likelihoods, autoencoders."""
