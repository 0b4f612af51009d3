"""Keys that users of transformers, DeepSpeed and BERT's own scripts write -> the keys of a run's configuration."""

from typing import NamedTuple


class KeyHint(NamedTuple):
    """What to write instead of a key: one of `keys`, or nothing where there are none; `note` is a short explanation."""

    keys: tuple[str, ...]
    note: str

    def __str__(self) -> str:
        fix = f"use {' or '.join(self.keys)}" if self.keys else "remove it"
        return f"{fix} ({self.note})" if self.note else fix


#: Keys of other programs, keys of `RunConfig`, note. A key of another section of `RunConfig` needs no row.
_ROWS = (
    # batch size
    ("per_device_train_batch_size per_gpu_train_batch_size train_micro_batch_size_per_gpu",
     "pretrain.micro_batch_size finetune.batch_size", "the former per worker, the latter of all workers"),
    ("train_batch_size batch_size", "pretrain.global_batch_size finetune.batch_size", "of all workers"),
    ("gradient_accumulation_steps", "pretrain.global_batch_size pretrain.micro_batch_size",
     "a step accumulates micro-batches up to the global batch"),
    ("per_device_eval_batch_size eval_batch_size max_eval_steps", "pretrain.eval_batches", "the number of batches"),
    # length of a sequence, and of training
    ("max_length max_seq_len max_sequence_length seq_length block_size",
     "pretrain.phases.max_seq_length finetune.max_seq_length", ""),
    ("max_steps max_train_steps num_train_steps num_steps", "pretrain.phases.steps pretrain.budget", ""),
    ("num_train_epochs num_epochs epochs", "finetune.epochs pretrain.phases.steps pretrain.budget",
     "pretraining has no epochs"),
    ("early_stopping_patience patience", "finetune.early_stopping", "a number of epochs"),
    # optimizer
    ("lr", "pretrain.optimizer.learning_rate finetune.learning_rate", ""),
    ("warmup_ratio warmup_proportion num_warmup_steps", "pretrain.optimizer.warmup_steps", "a number of steps"),
    ("lr_scheduler_type scheduler", "", "the learning rate rises over warmup_steps, then falls linearly to 0"),
    ("optim", "", "the optimizer is AdamW"),
    ("adam_beta1 adam_beta2 beta1 beta2", "pretrain.optimizer.betas", "a list of two"),
    ("adam_epsilon epsilon", "pretrain.optimizer.eps", ""),
    ("weight_decay_rate", "pretrain.optimizer.weight_decay", ""),
    ("gradient_clipping clip_grad_norm", "pretrain.optimizer.max_grad_norm", ""),
    # precision, memory, workers
    ("fp16 bf16 use_fp16 mixed_precision dtype torch_dtype", "pretrain.precision finetune.precision",
     "for example bf16"),
    ("gradient_checkpointing", "pretrain.activation_checkpointing", ""),
    ("stage", "pretrain.zero_stage", ""),
    ("num_gpus n_gpu nproc_per_node world_size num_workers", "pretrain.workers pretrain.gpus", ""),
    ("dataloader_num_workers", "", "each worker prefetches its batches in a thread"),
    # checkpoints, metrics, evaluation
    ("save_steps save_checkpoints_steps checkpointing_steps", "pretrain.checkpoint_every", "a number of steps"),
    ("save_total_limit keep_checkpoint_max", "pretrain.keep_checkpoints", ""),
    ("resume_from_checkpoint overwrite_output_dir", "", "a run resumes by itself; --force runs a stage again"),
    ("logging_steps log_interval steps_per_print", "pretrain.log_every", "a number of steps"),
    ("report_to", "", "every run writes metrics.jsonl and TensorBoard files"),
    ("eval_steps eval_interval eval_strategy evaluation_strategy", "pretrain.eval_every", "a number of steps"),
    # masking and random seeds
    ("mlm_probability masked_lm_probability", "examples.masked_lm_prob", ""),
    ("whole_word_mask do_whole_word_mask", "examples.mask_unit", "word, for whole words"),
    ("dup_factor duplicate_factor", "examples.dupe_factor", ""),
    ("random_seed data_seed", "examples.seed pretrain.seed finetune.seed", ""),
    # vocabulary
    ("do_lower_case do_lowercase", "vocab.lowercase", ""),
    ("vocab_size", "vocab.size", ""),
    ("vocab_file tokenizer_name", "vocab.file", "a vocab.txt or tokenizer.json"),
    # files and names
    ("model_name_or_path init_checkpoint", "pretrain.init finetune.init", "the folder of a model to start from"),
    ("output_dir", "root", ""),
    ("run_name", "name", ""),
    ("task_name", "finetune.glue finetune.name", ""),
    ("train_file input_file data_dir dataset_name", "extract.sources.files finetune.file finetune.files.train", ""),
    ("validation_file validation_split_percentage", "extract.heldout_fraction finetune.files.dev", ""),
    # shape of the model
    ("num_layers n_layer", "pretrain.model.num_hidden_layers", ""),
    ("num_heads n_head", "pretrain.model.num_attention_heads", ""),
    ("d_model n_embd", "pretrain.model.hidden_size", ""),
    ("dropout", "pretrain.model.hidden_dropout_prob pretrain.model.attention_probs_dropout_prob", ""),
    ("n_positions", "pretrain.model.max_position_embeddings", ""),
)  # fmt: skip

KEY_HINTS = {alias: KeyHint(tuple(keys.split()), note) for aliases, keys, note in _ROWS for alias in aliases.split()}
