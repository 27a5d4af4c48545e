"""Two workers, sixteen requests, every byte and token checked."""
