"""gRPC services of control: each translates between the wire and the parts that know."""
