"""The laboratory: what the theory claims about models, codes and information, measured in bytes (docs/LAB.md)."""
