"""From two layouts and two block lists to copies of bytes. Pure: no I/O, no clock."""
