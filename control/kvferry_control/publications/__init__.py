"""Publications of this worker: their life as a pure machine, and what drives them."""
