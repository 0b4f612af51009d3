"""the keys of a run under `deepspeed` -> what is handed on to DeepSpeed, or one line that says why it is not."""

from typing import Any, Literal

from pydantic import Field, model_validator

from cloze.pipeline.core.config import Config

#: What DeepSpeed calls settings that Cloze has under another name, or has to leave as they are.
_OURS = {
    "stage": "set zero_stage",
    "gradient_clipping": "set optimizer.max_grad_norm",
    "optimizer": "set the keys of optimizer",
    "scheduler": "set optimizer.learning_rate and optimizer.warmup_steps",
    "train_batch_size": "set global_batch_size",
    "train_micro_batch_size_per_gpu": "set micro_batch_size",
    "gradient_accumulation_steps": "set global_batch_size and micro_batch_size, which decide it",
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "torch_autocast", "data_types", "amp"), "set precision"),
    **dict.fromkeys(
        ("offload_param", "offload_optimizer", "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
        "remove it: Cloze's checkpoints are gathered from the devices; zero_stage 3 and more workers save their memory",
    ),
    "round_robin_gradients": "remove it: Cloze would read one parameter's weights as another's",
    "checkpoint": "set checkpoint_every and keep_checkpoints",
    "zero_allow_untested_optimizer": "remove it",
}


class _PassedOn(Config):
    """Part of DeepSpeed's JSON; what is not set is left to DeepSpeed."""

    @model_validator(mode="before")
    @classmethod
    def _is_not_ours(cls, given: Any) -> Any:
        for key in given if isinstance(given, dict) else ():
            if key in _OURS and key not in cls.model_fields:
                raise ValueError(f"{key} is not handed on to DeepSpeed; {_OURS[key]}")
        return given


class ZeroOptimization(_PassedOn):
    """How ZeRO communicates and what it holds; sizes count elements. None of it changes what is computed."""

    contiguous_gradients: bool | None = None
    reduce_scatter: bool | None = None
    reduce_bucket_size: int | None = Field(default=None, gt=0)
    use_multi_rank_bucket_allreduce: bool | None = None
    allgather_partitions: bool | None = None
    allgather_bucket_size: int | None = Field(default=None, gt=0)
    overlap_comm: bool | None = None
    sub_group_size: int | None = Field(default=None, gt=0)
    stage3_prefetch_bucket_size: int | None = Field(default=None, ge=0)
    stage3_param_persistence_threshold: int | None = Field(default=None, ge=0)
    stage3_model_persistence_threshold: int | None = Field(default=None, ge=0)
    stage3_max_live_parameters: int | None = Field(default=None, ge=0)
    stage3_max_reuse_distance: int | None = Field(default=None, ge=0)
    stage3_module_granularity_threshold: int | None = Field(default=None, ge=0)
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    stage3_allgather_sequential: bool | None = None


class DeepSpeedConfig(_PassedOn):
    """What is handed on to DeepSpeed beside our own settings, under its own keys (deepspeed.ai/docs/config-json).

    DeepSpeed reads past a key that it does not know, so all that may be set stand here.
    """

    zero_optimization: ZeroOptimization = ZeroOptimization()
    communication_data_type: Literal["fp32", "fp16", "bf16"] | None = None  # in which gradients travel
