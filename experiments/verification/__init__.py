"""Whether results are the same: against the host in float64, on meshes, on divided devices."""
