"""A small decoder with paged KV: real bytes to move, and tokens that tell whether they arrived."""
