"""The control process of a worker: registration, negotiation, transfers, deadlines."""
