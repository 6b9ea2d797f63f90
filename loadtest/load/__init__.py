"""Traffic: the Locust scenario, and traces of users who come back."""
