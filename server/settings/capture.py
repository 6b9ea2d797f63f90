"""Settings of the capture of requests."""

from pathlib import Path
from typing import Self

from pydantic import BaseModel, Field, model_validator


class CaptureSettings(BaseModel):
    """Which requests are captured, where, and for how long. docs/capture.md explains."""

    capture_dir: Path | None = Field(
        default=None,
        description="Directory for captured requests, which belongs to this server alone; `mfalcon replay --capture` "
        "plays them again. Nothing is captured if not given.",
    )
    capture_sample: float = Field(
        default=0.01,
        ge=0,
        le=1,
        description="Share of users whose requests are captured, all of them; 0 captures nothing new, and still makes "
        "what was captured of deleted users unreadable.",
    )
    capture_mb: int = Field(
        default=1_024, ge=2, le=10**7, description="Most that captured requests take, in MiB; then the oldest go."
    )
    capture_file_mb: int = Field(
        default=64, ge=1, le=10**4, description="Size, in MiB, at which a file of captured requests ends."
    )
    capture_max_age_days: float = Field(
        default=30.0, ge=0.001, le=3_650, description="Days after which a file of captured requests is deleted."
    )
    capture_scores: bool = Field(
        default=True, description="Whether scores are captured, so that a replay can compare with them."
    )

    @model_validator(mode="after")
    def _two_files_fit(self) -> Self:
        if self.capture_file_mb * 2 > self.capture_mb:
            raise ValueError(
                f"capture_file_mb: got {self.capture_file_mb}, must be at most {self.capture_mb // 2} while capture_mb "
                f"is {self.capture_mb}: two files must fit"
            )
        return self
