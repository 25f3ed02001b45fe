"""What is trained: configurations, networks, losses, the step, and scores."""
