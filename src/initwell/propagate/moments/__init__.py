"""Signals: a tensor as its second moments, and how reshapes, parts and places of its axes change them."""
