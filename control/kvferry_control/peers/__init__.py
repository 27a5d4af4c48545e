"""Other workers' controls, as this worker asks them."""
