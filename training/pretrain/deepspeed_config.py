"""The keys under `pretrain.deepspeed` -> DeepSpeed's configuration, or an error that names the key to use instead."""

from typing import Any, Literal

from pydantic import Field, model_validator

from cloze.pipeline.core.config import Config

#: DeepSpeed's settings that Cloze sets itself -> what to do instead.
_SET_BY_CLOZE = {
    "stage": "set zero_stage",
    "gradient_clipping": "set optimizer.max_grad_norm",
    "optimizer": "set the keys of optimizer",
    "scheduler": "set optimizer.learning_rate and optimizer.warmup_steps",
    "train_batch_size": "set global_batch_size",
    "train_micro_batch_size_per_gpu": "set micro_batch_size",
    "gradient_accumulation_steps": "set global_batch_size and micro_batch_size, which determine it",
    **dict.fromkeys(("fp16", "bf16", "bfloat16", "torch_autocast", "data_types", "amp"), "set precision"),
    **dict.fromkeys(
        ("offload_param", "offload_optimizer", "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory"),
        "remove it: Cloze gathers checkpoints from the devices; to save memory, use zero_stage 3 and more workers",
    ),
    "round_robin_gradients": "remove it: it reorders the parameters, and checkpoints would contain wrong weights",
    "checkpoint": "set checkpoint_every and keep_checkpoints",
    "zero_allow_untested_optimizer": "remove it",
}


class _DeepSpeedSection(Config):
    """A part of DeepSpeed's JSON. DeepSpeed chooses the values that are not set."""

    @model_validator(mode="before")
    @classmethod
    def _is_not_set_by_cloze(cls, value: Any) -> Any:
        for key in value if isinstance(value, dict) else ():
            if key in _SET_BY_CLOZE and key not in cls.model_fields:
                raise ValueError(f"{key} cannot be set for DeepSpeed; {_SET_BY_CLOZE[key]}")
        return value


class ZeroOptimization(_DeepSpeedSection):
    """How ZeRO communicates and what it keeps in memory. None of these settings changes what is computed."""

    contiguous_gradients: bool | None = None
    """Copy gradients to a contiguous buffer as they are computed, to avoid memory fragmentation."""
    reduce_scatter: bool | None = None
    """Average gradients with reduce-scatter instead of all-reduce."""
    reduce_bucket_size: int | None = Field(default=None, gt=0)
    """Number of gradient elements reduced at once. By default the model's number of parameters, up to 500 million."""
    use_multi_rank_bucket_allreduce: bool | None = None
    """Combine the gradient buckets of several workers in one all-reduce."""
    allgather_partitions: bool | None = None
    """Collect updated weights with all-gather instead of a series of broadcasts."""
    allgather_bucket_size: int | None = Field(default=None, gt=0)
    """Number of weight elements gathered at once."""
    overlap_comm: bool | None = None
    """Overlap the reduction of gradients with the backward pass."""
    sub_group_size: int | None = Field(default=None, gt=0)
    """Stage 3: number of weight elements that the optimizer updates at once."""
    stage3_prefetch_bucket_size: int | None = Field(default=None, ge=0)
    """Stage 3: number of weight elements fetched ahead of their use."""
    stage3_param_persistence_threshold: int | None = Field(default=None, ge=0)
    """Stage 3: parameters with fewer elements are not partitioned."""
    stage3_model_persistence_threshold: int | None = Field(default=None, ge=0)
    """Stage 3: maximum number of elements that are not partitioned, over the whole model."""
    stage3_max_live_parameters: int | None = Field(default=None, ge=0)
    """Stage 3: maximum number of gathered weight elements on each device."""
    stage3_max_reuse_distance: int | None = Field(default=None, ge=0)
    """Stage 3: weights stay gathered if they are used again within this number of elements."""
    stage3_module_granularity_threshold: int | None = Field(default=None, ge=0)
    """Stage 3: modules with fewer elements per submodule are gathered as a whole."""
    stage3_use_all_reduce_for_fetch_params: bool | None = None
    """Stage 3: gather weights with all-reduce instead of all-gather."""
    stage3_allgather_sequential: bool | None = None
    """Stage 3: gather weights one after the other instead of in one group."""


class DeepSpeedConfig(_DeepSpeedSection):
    """DeepSpeed's own settings, with the keys of deepspeed.ai/docs/config-json. Only the listed keys are allowed."""

    zero_optimization: ZeroOptimization = ZeroOptimization()
    """Settings of ZeRO. The stage is set by pretrain.zero_stage."""
    communication_data_type: Literal["fp32", "fp16", "bf16"] | None = None
    """The data type in which workers exchange gradients; fp32 by default."""
