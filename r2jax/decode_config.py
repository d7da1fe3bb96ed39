"""How an answer is decoded: `DecodeConfig`, and the two parts that a compiled program takes of
it."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, NamedTuple, get_args

import jax
import numpy as np

from r2jax.config import is_int, is_number

_DREAM_NAMES = ("maskgit_plus", "confidence_threshold")  # its names for ranking by probability
_LARGEST = float(np.finfo(np.float32).max)  # scalars are float32 in the compiled program

Cache = Literal["none", "prefix", "dual"]
Alg = Literal["confidence", "entropy", "topk_margin"]
Remasking = Literal["low_confidence", "random"]
TokenCluster = Literal["confidence", "mid", "random"]
TemporalEval = Literal["last", "ave", "max"]
Transfer = Literal["schedule", "threshold", "factor"]
Task = Literal["gsm8k", "math", "humaneval", "mbpp"]

# τ_t and τ_s of the paper's Table 8, by config.json's model_type.
_PAPER: dict[str, dict[Task, tuple[float, float]]] = {
    "llada": {
        "gsm8k": (0.70, 0.80),
        "math": (0.70, 0.80),
        "humaneval": (0.85, 0.85),
        "mbpp": (0.80, 0.80),
    },
    "Dream": {
        "gsm8k": (0.80, 0.85),
        "math": (0.80, 0.85),
        "humaneval": (0.85, 0.85),
        "mbpp": (0.80, 0.80),
    },
}


class StaticDecode(NamedTuple):
    """The part of a `DecodeConfig` that shapes the compiled program. Hashable: a jit static
    argument."""

    gen_length: int
    block_length: int
    cache: Cache
    transfer: Transfer
    alg: Alg
    """"confidence" unless the transfer is the schedule's."""
    remasking: Remasking
    sample: bool
    top_p: bool
    confidence_cluster_size: int | None
    """None: the rule is off (as it is when the window is longer than the block)."""
    token_cluster: TokenCluster | None
    temporal: bool
    temporal_eval: TemporalEval
    apply_rules: bool
    leap: bool
    window_size: int | None
    """None: nothing is pruned (as when the answer is too short for it)."""
    eos_ids: tuple[int, ...]
    """Tokens that end a row; empty: the whole answer is always decoded."""
    round_confidence: bool
    trace: bool

    @property
    def num_blocks(self) -> int:
        return self.gen_length // self.block_length

    @property
    def needs_key(self) -> bool:
        return self.sample or self.remasking == "random" or self.token_cluster == "random"


class DecodeScalars(NamedTuple):
    """The part of a `DecodeConfig` that is traced: sweeping over it never compiles again.

    Plain Python numbers (weakly typed, so equal dtypes on every call). Values of a rule that is off
    are unused.
    """

    steps_per_block: int
    tokens_per_step: int
    """That a capped threshold may pass (`Family.capped_threshold`): all, where `steps` is None."""
    threshold: float
    factor: float
    temperature: float
    top_p: float
    spatial_threshold: float
    confidence_cluster_unmasked: int
    token_cluster_size: int
    temporal_steps: int
    temporal_threshold: float
    confidence_alpha: float
    leap_radius: int
    leap_threshold: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecodeConfig:
    """How an answer is decoded. The defaults are R²-dLLM on LLaDA (arXiv 2604.18995, released
    values).

    None switches a rule off altogether: neither applied nor counted (None for
    `confidence_cluster_unmasked` means no limit). `factor` beats `threshold` beats the schedule of
    `steps`.

    Raises:
      ValueError: naming the option, its value and what would be right.
    """

    gen_length: int = 256
    """Tokens of the answer."""
    block_length: int | None = 32
    """Tokens decoded together before the next block starts; None: the whole answer is one block."""
    steps: int | None = None
    """Denoising steps of the schedule for the whole answer; None: gen_length (one token a step)."""
    cache: Cache = "dual"
    """Keys and values kept within a block: none, of what precedes the block, or also of what
    follows."""
    threshold: float | None = 0.9
    """Fast-dLLM: every masked token at least this confident is committed, and always the best
    one."""
    factor: float | None = None
    """Fast-dLLM's rank-dependent bound, instead of `threshold`: the k-th best must reach
    1 - factor / (k + 1)."""
    alg: Alg = "confidence"
    """What the schedule of `steps` ranks masked tokens by: their probability (Dream's name for it,
    "maskgit_plus", is taken as well), the entropy, or the margin between the two most likely ones.
    Windows judge by it too. Without effect under a threshold or factor, which are of
    probabilities."""
    remasking: Remasking = "low_confidence"
    """Which masked positions stay masked longest: those of low confidence, or random ones."""
    temperature: float = 0.0
    """0: greedy. Otherwise Gumbel noise of this scale on the logits."""
    top_p: float | None = None
    """Sample from the smallest set of tokens whose probabilities sum to this (after
    temperature)."""
    confidence_cluster_size: int | None = 3
    """R² spatial rule (Eq. 2): window length."""
    spatial_threshold: float | None = 0.8
    """R² τ_s: bound of both spatial rules."""
    confidence_cluster_unmasked: int | None = 1
    """Already decoded tokens that a window may hold."""
    token_cluster: TokenCluster | None = "confidence"
    """R² spatial rule (Eq. 3): which position of a run of equal predictions is committed."""
    token_cluster_size: int = 2
    """Shortest run that counts."""
    temporal_steps: int | None = 3
    """R² temporal rule (Eq. 4): m, consecutive steps with the same prediction."""
    temporal_threshold: float | None = 0.8
    """R² τ_t."""
    temporal_eval: TemporalEval = "last"
    """Which confidence of the streak must reach τ_t."""
    apply_rules: bool = True
    """False: R²'s rules only count what they would have done (the paper's potential counts)."""
    leap_radius: int | None = None
    """LocalLeap: this near to a masked token that reaches `threshold`, `leap_threshold` is enough;
    None: off."""
    leap_threshold: float = 0.75
    """LocalLeap: the bound near such an anchor, at most `threshold`."""
    window_size: int | None = None
    """Streaming-dLLM: masks behind the block that are fed, and the answer's last position; None:
    all."""
    confidence_alpha: float = 0.0
    """Streaming-dLLM: block calls multiply the thresholds of transfer by 1 - alpha (1 - r), r the
    masked share of what they feed. 0: fixed. A factor's bound and the schedule stay as they are."""
    stop_at_eos: bool = False
    """End a row after the block that holds an end-of-sequence token."""
    eos_id: int | tuple[int, ...] | None = None
    """Which tokens end a row; None: the model's eos."""
    round_confidence: bool = False
    """Transfer and windows compare confidences and `threshold` rounded to the model's dtype, as
    Dream's program does (bfloat16: 0.9 becomes 0.8984). False: float32."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # a sweep hands in NumPy's or JAX's scalars
            value = getattr(self, field.name)
            if isinstance(value, (np.generic, np.ndarray, jax.Array)) and value.ndim == 0:
                object.__setattr__(self, field.name, value.item())
            elif isinstance(value, list):
                object.__setattr__(self, field.name, tuple(value))
        if self.alg in _DREAM_NAMES:
            object.__setattr__(self, "alg", "confidence")
        self._check_each()
        self._check_together()

    def _check_each(self) -> None:
        """Every option by itself."""
        for name, values in (
            ("cache", get_args(Cache)),
            ("alg", get_args(Alg)),
            ("remasking", get_args(Remasking)),
            ("token_cluster", (*get_args(TokenCluster), None)),
            ("temporal_eval", get_args(TemporalEval)),
            ("apply_rules", (True, False)),
            ("stop_at_eos", (True, False)),
            ("round_confidence", (True, False)),
        ):
            if getattr(self, name) not in values:
                choices = ", ".join(repr(v) for v in values)
                raise ValueError(f"{name} must be one of {choices}, got {getattr(self, name)!r}")
        for name, low, optional in (
            ("gen_length", 1, False),
            ("block_length", 1, True),
            ("steps", 1, True),
            ("confidence_cluster_size", 1, True),
            ("confidence_cluster_unmasked", 0, True),
            ("token_cluster_size", 1, False),
            ("temporal_steps", 1, True),
            ("leap_radius", 1, True),
            ("window_size", 0, True),
        ):
            value = getattr(self, name)
            if not (value is None and optional) and not (is_int(value) and value >= low):
                raise ValueError(
                    f"{name} must be an integer of at least {low}{' or None' if optional else ''}, "
                    f"got {value!r}"
                )
        for name, high, instead_of_none in (
            ("threshold", 1.0, None),
            ("spatial_threshold", 1.0, None),
            ("temporal_threshold", 1.0, None),
            ("leap_threshold", 1.0, "leap_radius=None switches LocalLeap off"),
            ("confidence_alpha", 1.0, "0 leaves the threshold fixed"),
            ("factor", _LARGEST, None),
            ("temperature", _LARGEST, "0 is greedy"),
            ("top_p", 1.0, None),
        ):
            value = getattr(self, name)
            if value is None and instead_of_none:
                raise ValueError(f"{name} must be a number ({instead_of_none}), got None")
            if value is not None and not (is_number(value) and 0 <= value <= high):
                bounds = "at least 0" if high == _LARGEST else f"between 0 and {high:g}"
                raise ValueError(f"{name} must be a number {bounds}, got {value!r}")
        if self.top_p == 0:
            raise ValueError("top_p must be in (0, 1], got 0")
        eos_ids = self.eos_ids
        if eos_ids is not None and not (
            isinstance(eos_ids, tuple) and eos_ids and all(is_int(e) and e >= 0 for e in eos_ids)
        ):
            raise ValueError(f"eos_id must be a token id or a tuple of them, got {self.eos_id!r}")

    def _check_together(self) -> None:
        """Options that only make sense with others."""
        block = self.block_length or self.gen_length
        if self.gen_length % block:
            raise ValueError(
                f"gen_length must be a multiple of block_length, got {self.gen_length} and {block}"
            )
        blocks = self.gen_length // block
        steps = self.steps or self.gen_length
        if steps % blocks:
            raise ValueError(
                f"steps counts for the whole answer and must be a multiple of its {blocks} blocks "
                f"(gen_length / block_length), got {steps}"
            )
        if self.remasking == "random" and (self.alg != "confidence" or self.round_confidence):
            raise ValueError(
                "remasking='random' ranks at random: it needs alg='confidence' and "
                f"round_confidence=False, got alg={self.alg!r}, "
                f"round_confidence={self.round_confidence}"
            )
        if self.confidence_alpha > 0 and self.cache == "none":
            raise ValueError(
                "confidence_alpha moves the threshold of block calls, and cache='none' makes none: "
                f"set cache='prefix' (as Streaming-dLLM) or 'dual', or confidence_alpha=0; "
                f"got {self.confidence_alpha}"
            )
        if self.leap_radius is None:
            return
        if self.threshold is None or self.factor is not None:
            raise ValueError(
                "leap_radius lowers `threshold` near anchors, so it needs a threshold and "
                f"factor=None; got threshold={self.threshold}, factor={self.factor}"
            )
        if self.leap_threshold > self.threshold:
            raise ValueError(
                f"leap_threshold must be at most threshold ({self.threshold}), "
                f"got {self.leap_threshold}"
            )

    @property
    def eos_ids(self) -> tuple[int, ...] | None:
        return (self.eos_id,) if isinstance(self.eos_id, int) else self.eos_id

    @classmethod
    def r2(
        cls, *, task: Task | None = None, model_type: str = "llada", **overrides: Any
    ) -> DecodeConfig:
        """R²-dLLM: Fast-dLLM's threshold and dual cache with the three redundancy rules.

        Args:
          task: with the paper's thresholds for it (Table 8) instead of the released defaults.
          model_type: the paper's thresholds for this family: "llada" or "Dream".
          **overrides: any option.

        Raises:
          ValueError: the paper has no such task or family; and as the class.
        """
        if task is None:
            return cls(**overrides)
        if model_type not in _PAPER:
            raise ValueError(f"model_type must be one of {', '.join(_PAPER)}, got {model_type!r}")
        if task not in _PAPER[model_type]:
            raise ValueError(f"task must be one of {', '.join(get_args(Task))}, got {task!r}")
        temporal, spatial = _PAPER[model_type][task]
        own = {"temporal_threshold": temporal, "spatial_threshold": spatial}
        return cls(**{**own, **overrides})

    @classmethod
    def fast_dllm(cls, **overrides: Any) -> DecodeConfig:
        """Fast-dLLM: threshold and dual cache; R²'s rules only count what they would do."""
        return cls(**{"apply_rules": False, **overrides})

    @classmethod
    def vanilla(cls, **overrides: Any) -> DecodeConfig:
        """LLaDA's own sampler: no cache, the schedule of `steps`, one token a step by default."""
        return cls(**{"cache": "none", "threshold": None, "apply_rules": False, **overrides})

    @classmethod
    def streaming(cls, **overrides: Any) -> DecodeConfig:
        """Streaming-dLLM (arXiv 2601.17917): prefix cache, pruned suffix, moving threshold, stop at
        the end of the text; R²'s rules only count what they would do."""
        own = {"cache": "prefix", "window_size": 32, "confidence_alpha": 0.3, "stop_at_eos": True}
        return cls(**{**own, "apply_rules": False, **overrides})

    @classmethod
    def local_leap(cls, **overrides: Any) -> DecodeConfig:
        """LocalLeap (arXiv 2510.07081): Fast-dLLM, with a lower threshold near certain tokens."""
        return cls(**{"leap_radius": 4, "apply_rules": False, **overrides})

    def split(self, eos_id: int, *, trace: bool = False) -> tuple[StaticDecode, DecodeScalars]:
        """The hashable part that shapes the program and the numbers that are traced.

        Args:
          eos_id: the model's end-of-sequence token, used where `eos_id` is None.
          trace: record what every forward found, predicted and committed (trace.py).
        """
        block = self.block_length or self.gen_length
        window = self.confidence_cluster_size
        spatial = self.spatial_threshold is not None
        eos_ids = self.eos_ids if self.eos_ids is not None else (eos_id,)
        transfer: Transfer = "schedule"
        if self.factor is not None:
            transfer = "factor"
        elif self.threshold is not None:
            transfer = "threshold"
        static = StaticDecode(
            gen_length=self.gen_length,
            block_length=block,
            cache=self.cache,
            transfer=transfer,
            alg=self.alg if transfer == "schedule" else "confidence",
            remasking=self.remasking,
            sample=self.temperature > 0,
            top_p=self.top_p is not None,
            confidence_cluster_size=window if spatial and window and window <= block else None,
            token_cluster=self.token_cluster if spatial else None,
            temporal=self.temporal_steps is not None and self.temporal_threshold is not None,
            temporal_eval=self.temporal_eval,
            apply_rules=self.apply_rules,
            leap=self.leap_radius is not None,
            window_size=(
                self.window_size
                if self.window_size is not None and block + self.window_size + 1 < self.gen_length
                else None
            ),
            eos_ids=eos_ids if self.stop_at_eos else (),
            round_confidence=self.round_confidence,
            trace=trace,
        )
        steps_per_block = (self.steps or self.gen_length) // static.num_blocks
        unmasked = self.confidence_cluster_unmasked
        scalars = DecodeScalars(
            steps_per_block=steps_per_block,
            tokens_per_step=block // steps_per_block if self.steps else block,
            threshold=float(self.threshold or 0.0),
            factor=float(self.factor or 0.0),
            temperature=float(self.temperature),
            top_p=float(self.top_p or 1.0),
            spatial_threshold=float(self.spatial_threshold or 0.0),
            confidence_cluster_unmasked=block if unmasked is None else unmasked,
            token_cluster_size=self.token_cluster_size,
            temporal_steps=self.temporal_steps or 1,
            temporal_threshold=float(self.temporal_threshold or 0.0),
            confidence_alpha=float(self.confidence_alpha),
            leap_radius=self.leap_radius or 0,
            leap_threshold=float(self.leap_threshold),
        )
        return static, scalars
