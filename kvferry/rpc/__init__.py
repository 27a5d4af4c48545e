"""gRPC as kvferry uses it: channels, servers, errors and value conversions."""
