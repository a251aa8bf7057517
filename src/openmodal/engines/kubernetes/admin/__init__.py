"""For a cluster's administrators: what sandboxes need there, what is missing, and whether policies are enforced."""
