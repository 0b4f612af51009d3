"""Extractive question answering, as BERT's run_squad.py does it: the answer to a question is a span of its context.

squad_files: a file in SQuAD's form -> questions. windows: questions -> the model's inputs. answers: the model's logits
-> answers and the official prediction files.
"""
