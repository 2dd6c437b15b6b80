"""Each test file says what it claims; golden.py and reference.py are what they are held against."""
