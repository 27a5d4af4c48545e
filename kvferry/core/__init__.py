"""The pure core: value types and rules that every part shares, free of I/O."""
