"""What computes a stack of layers."""
