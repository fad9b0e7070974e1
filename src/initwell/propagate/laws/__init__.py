"""Expectations: of functions of Gaussians, of what is no Gaussian, of softmax weights and of maxima."""
