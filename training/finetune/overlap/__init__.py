"""Which of a task's examples share text with the documents that its encoder was pretrained on."""
