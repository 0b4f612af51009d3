"""Cloze: a Wikipedia dump, books or your own documents become a pretrained, fine-tuned BERT."""
