"""Each test file says what it claims; reference.py is what they are held against."""

import os

# Tiny models wait for their threads more than they compute.  Where others use the cores too, waiting must not mean spinning.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
