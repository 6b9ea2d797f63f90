"""Replicas behind real balancers: what moves, what is lost, what is warm."""
