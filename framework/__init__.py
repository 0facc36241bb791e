"""Train reasoning models by DeepSeek's published recipe, on Ray."""

__version__ = "0.1.0"
