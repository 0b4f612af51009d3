"""Token ids -> the hidden states of every layer, and vectors of texts and tokens made of them."""
