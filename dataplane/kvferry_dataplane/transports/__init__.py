"""What moves bytes between data planes of different hosts: one interface, one module per library."""
