"""Measures kvferry against what it is made of, in turns on one machine."""
