"""Text processing that several stages share: words, sentences, tokenizer, masking, and reading text files."""
