"""Transfers into this worker: their life as a pure machine, their table, and what drives them."""
