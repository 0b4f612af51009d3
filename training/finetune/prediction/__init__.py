"""A fine-tuned model -> predictions for lines and files, and its ONNX file."""
