"""toynorb: fifty toys rendered from all sides, with smallNORB's categories, factors and split."""
