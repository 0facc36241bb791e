"""Model families: one small frozen dataclass a file, found by Hugging Face's `model_type` (`families.of_base`)."""
