"""A GPT by hand: its kernels, layers, training and sampling.  Every bit is the same on every machine."""
