"""Models of `job=transformers` that are no policies of `framework.models.families`: a file each."""
