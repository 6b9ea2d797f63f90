"""Settings of what computes, and of the memory that it has."""

from typing import Literal

from pydantic import BaseModel, Field

from server.settings.kinds import AtLeastOne, NotNegative


class ComputeSettings(BaseModel):
    """A device, its backend, and how its time is cut up."""

    device: str = Field(
        default="cpu", pattern=r"^(cpu|cuda(:\d{1,2})?)$", description="Device that computes: cpu, cuda or cuda:N."
    )
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = Field(
        default="float32", description="Type that it computes in."
    )
    backend: Literal[
        "auto",
        "reference",
        "fused",
        "triton",
        "triton_plain",
        "avx512_bf16",
        "avx512_f32",
        "avx2_f32",
        "portable_f32",
        "portable_bf16",
    ] = Field(default="auto", description="What computes; auto is the fastest that passes its self-check here.")
    kv_dtype: Literal["auto", "int8", "fp8", "fp8-products"] = Field(
        default="auto",
        description="Type of the KV states in this process: that of dtype, or 8-bit codes; fp8-products has a Hopper "
        "GPU multiply them as they are.",
    )
    threads: int = Field(default=0, ge=0, description="Threads that compute; 0 is one for each core that we own.")
    microbatch: Literal["auto"] | AtLeastOne = Field(
        default="auto", description="Candidates scored in one forward; auto measures the best size once, at start."
    )
    kv_budget_mb: Literal["auto"] | NotNegative = Field(
        default="auto",
        description="Host memory for KV states, in MiB; the least recently used go. auto is 1024, or under a "
        "container's memory limit half of what that leaves once the weights are loaded.",
    )
    device_budget_mb: int = Field(
        default=0, ge=0, description="Memory of the GPU for KV states, in MiB; 0 takes most of what is free at start."
    )
    slice_ms: float = Field(
        default=8.0,
        ge=0.5,
        le=1_000,
        description="Predicted time, in ms, after which a large request lets others go first; what takes less goes "
        "before it.",
    )
    queue_size: AtLeastOne = Field(
        default=1_024, description="Requests that may wait for the device; more are refused as overload."
    )
    device_stall_s: float = Field(
        default=60.0,
        ge=0,
        le=3_600,
        description="Seconds after which a step of the device counts as hung: the server drains and ends with exit "
        "code 1, as when its device is lost. 0 waits for ever.",
    )
