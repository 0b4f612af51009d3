"""The configuration of the checks that stop a run."""

from pydantic import Field

from cloze.pipeline.core.config import NAME, Config


class ChecksConfig(Config):
    """Limits for the output of a finished stage. A run stops at a stage that exceeds one, with exit status 2.

    null switches a check off. "The last run" is the last run of this name that passed all its checks: outputs are
    compared with it while the settings are the same. Losses and scores are compared with the best promoted
    model.
    """

    max_decrease: float | None = Field(default=0.1, ge=0, le=1)
    """Largest decrease of a stage's documents, words, tokens or examples since the last run, as a fraction."""
    max_increase: float | None = Field(default=1.0, ge=0)
    """Largest increase of the same since the last run, as a fraction: 1.0 is twice as many."""
    max_drop_rate_increase: float | None = Field(default=0.05, ge=0, le=1)
    """Largest increase, since the last run, of the fraction of records that are dropped for one reason."""
    max_unknown_increase: float | None = Field(default=0.01, ge=0, le=1)
    """Largest increase, since the last run, of the fraction of unknown words and of [UNK] tokens."""
    max_residue_increase: float | None = Field(default=0.01, ge=0, le=1)
    """Largest increase, since the last run, of the fraction of Wikipedia's documents with left-over markup."""
    finite_loss: bool = True
    """Whether the losses of pretraining and of the tasks must be finite numbers."""
    max_loss_increase: float | None = Field(default=0.02, ge=0)
    """How much higher than the best promoted model's the held-out loss may be, as a fraction of that, where both losses
    are of the same vocabulary and settings."""
    max_score_decrease: float | None = Field(default=0.0, ge=0)
    """How much lower than the best promoted model's a task's score may be, beyond what its 95 % interval explains."""
    max_age_days: float | None = Field(default=None, gt=0)
    """Largest age of the newest dump or document: of the date in its path, such as 20261101, or of its last change."""
    promoted: str | None = Field(default=None, pattern=f"^{NAME}$")
    """Name of the promoted models to compare with; by default the name of the run."""
