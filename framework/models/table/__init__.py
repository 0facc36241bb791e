"""The models of `job=transformers` that the recipes for reasoning do not have, a file each."""

ENCODERS = ("bert", "roberta", "albert", "distilbert", "xlnet")  # model types; XLNet's order of prediction is no text's
READERS = (*ENCODERS, "ctrl")  # that vLLM does not sample from
