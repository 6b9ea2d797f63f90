"""Faults: real Redis servers, fleets of replicas, and what breaks them under load."""
