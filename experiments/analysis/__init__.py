"""What happens inside a network: attacks, convergence, assignments, agreement, decoded and read-out
poses.
"""
