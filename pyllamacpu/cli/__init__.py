"""The command line: one module per command; a command parses its options and delegates."""
