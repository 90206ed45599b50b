"""Convolutions of a CPU: XLA's, Winograd's and oneDNN's behind `primitives.convolve`."""
