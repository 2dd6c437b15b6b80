"""Context mixing: bit predictions of many contexts, of matches and of the GPT, added up by a small network."""
