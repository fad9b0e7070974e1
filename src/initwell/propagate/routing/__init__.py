"""Mixtures of experts: which tokens a router sends to which of them."""
