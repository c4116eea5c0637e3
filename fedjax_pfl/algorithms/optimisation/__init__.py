"""Methods that seek one better global model."""
