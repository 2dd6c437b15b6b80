"""Each test file says what it claims."""
