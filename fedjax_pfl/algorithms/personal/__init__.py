"""Methods that end with a model per client."""
