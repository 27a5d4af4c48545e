"""The data planes of this worker, as control sees them."""
