"""An environment of infra/terraform -> a cluster that runs jobs (`infra/scripts/up`), and back (`infra/scripts/down`).

Both are sequences of commands that can be repeated: terraform, aws, helm, kubectl, an image builder, and cloze.
"""
