"""A real small model to try the framework's jobs on: SmolLM2-135M-Instruct, and small arithmetic to train it by."""
