"""The packed path: a source sends the scattered pieces of a chunk as one stream, the reader puts them in place."""
