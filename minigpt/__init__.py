"""A GPT by hand: its kernels, layers, training and sampling.  Every bit is the same on every machine."""

__version__ = "0.1.0"
