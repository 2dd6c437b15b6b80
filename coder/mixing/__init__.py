"""Context mixing: the bits of each byte, predicted from many contexts, matches and the GPT.  Begin with mixer.py."""
