"""The first floor: example shards -> a pretrained, fine-tuned and scored BERT."""
