"""Every bad input that we try, over gRPC and HTTP, with its answer."""
