"""The gRPC edge: servicers, interceptors and the translation to and from protobuf."""
