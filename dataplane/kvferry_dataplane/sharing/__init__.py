"""Memory that data planes of one host show each other."""
