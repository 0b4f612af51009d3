"""What several stages know of text: words, sentences, tokenizer, masking, and how files of text are read."""
