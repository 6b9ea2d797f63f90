"""Many replicas on paper: what requests cost, a simulation of a fleet that pays it, and what that adds up to."""
