"""Experiments on labelled data, where the oracle is a look-up."""
