"""Google Cloud: a project made ready for sandboxes, and tokens for its services."""
