"""Wire contract kvferry.layout: generated, see protos/kvferry/layout."""
