"""Wire contract kvferry.dataplane: generated, see protos/kvferry/dataplane."""
