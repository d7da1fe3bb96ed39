"""lm-eval's model: masked-diffusion language models behind its three questions.

- `generate_until`: all requests of a task at once, in batches of similar length.
- `loglikelihood`: LLaDA's Monte-Carlo estimate (likelihood.py).
- `loglikelihood_rolling`: refused, these models have no likelihood token by token.

Registered as "r2jax", so that lm-eval's own functions find it once this module is imported:

    import eval.adapter, lm_eval
    lm_eval.simple_evaluate("r2jax", {"checkpoint": "llada-gsm-6m", "strategy": "r2"}, ["gsm8k"])
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import simple_parse_args_string

from eval.answers import Answer, as_original, as_text
from eval.lazy_model import LazyModel
from eval.likelihood import Request
from eval.presets import decode_config
from eval.records import Keeper, Memory, Record, keep_generations, keep_scores
from eval.results_file import RULES
from r2jax import options
from r2jax.decode_config import DecodeConfig
from r2jax.family import family_of
from r2jax.generate import check_config, check_prompts
from r2jax.text import with_ends


class Prepared(NamedTuple):
    """The requests of a task as token ids."""

    prompts: list[np.ndarray]
    """What the model is given; for scoring, the contexts."""
    targets: list[np.ndarray]
    """Given answers; empty where answers are generated."""
    truncated: int
    """Prompts that were cut at their beginning."""

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt."""
        return max(len(prompt) for prompt in self.prompts)


class R2JaxLM(TemplateLM):
    """A checkpoint, and how it decodes."""

    def __init__(
        self,
        source: LazyModel,
        decode: DecodeConfig,
        *,
        batch_size: int = 64,
        seed: int = 0,
        mc_num: int = 128,
        check_greedy: bool = True,
        truncate: bool = False,
        plain: bool = False,
        keeper: Keeper | None = None,
        what: str = "decoding",
    ) -> None:
        """Check what can be checked without the weights, which are loaded when they are needed.

        Args:
          source: the checkpoint.
          decode: for `generate_until`.
          batch_size: answers decoded together. (Scoring has batches of its own.)
          seed: of sampling and of the masks of the likelihood.
          mc_num: samples of the likelihood.
          check_greedy: say of scored answers whether they are the greedy ones (L forwards each).
          truncate: cut prompts that are too long at their beginning, instead of refusing them.
          plain: cut answers as `r2jax.generate_text` does, not as the original evaluator.
          keeper: of records; default memory.
          what: goes on, for the progress.

        Raises:
          ValueError: naming the option.
        """
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        if mc_num < 1:
            raise ValueError(f"mc_num must be at least 1, got {mc_num}")
        check_config(decode, source.config)
        self.source, self.decode = source, decode
        self.batch_size, self.seed, self.mc_num = batch_size, seed, mc_num
        self.check_greedy, self.truncate, self.plain = check_greedy, truncate, plain
        self.keeper: Keeper = Memory() if keeper is None else keeper
        self.what = what
        self.tokenizer: Any = source.tokenizer
        self.chat = False
        """Whether prompts come out of the chat template: set when lm-eval first asks for it."""
        self.answers: list[Record] = []
        """Of the last task, one a request: text, tokens, nfe, refreshes, actual, potential,
        seconds, compile_seconds."""

    @classmethod
    def create_from_arg_obj(
        cls, arg_dict: dict[str, Any], additional_config: dict[str, Any] | None = None
    ) -> R2JaxLM:
        """The adapter from lm-eval's `model_args`.

        Args:
          arg_dict: checkpoint, strategy, task (whose thresholds R² takes), dtype, quantize, mesh,
            seed, mc_num, check_greedy, truncate, and any option of `DecodeConfig`.
          additional_config: lm-eval's batch_size; its device is not ours.
        """
        given = {**(additional_config or {}), **arg_dict}
        for name in ("device", "max_batch_size"):
            given.pop(name, None)
        own = {
            k: given.pop(k) for k in ("seed", "mc_num", "check_greedy", "truncate") if k in given
        }
        if size := given.pop("batch_size", None):
            own["batch_size"] = int(size)
        if "checkpoint" not in given:
            raise ValueError("model_args must name a checkpoint: checkpoint=llada-gsm-6m")
        mesh = given.pop("mesh", None)
        source = LazyModel(
            given.pop("checkpoint"),
            dtype=given.pop("dtype", None),
            quantize=given.pop("quantize", None),
            mesh=options.mesh(mesh) if mesh else None,
        )
        decode = decode_config(
            given.pop("strategy", "r2"),
            task=given.pop("task", None),
            model_type=source.config.model_type,
            defaults=source.defaults,
            overrides=given,
        )
        return cls(source, decode, **own)

    @classmethod
    def create_from_arg_string(
        cls, arg_string: str, additional_config: dict[str, Any] | None = None
    ) -> R2JaxLM:
        return cls.create_from_arg_obj(simple_parse_args_string(arg_string), additional_config)

    @property
    def eot_token_id(self) -> int:
        return self.source.config.eos_id

    @property
    def tokenizer_name(self) -> str:
        return self.source.name.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        self.chat = True
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Token ids; the chat template has written its special tokens itself."""
        special = not self.chat if add_special_tokens is None else add_special_tokens
        ids = self.tokenizer(string, add_special_tokens=special, verbose=False)["input_ids"]
        # Dream's evaluator puts its start token before plain text; LLaDA's puts nothing.
        start = self.tokenizer.bos_token_id if self._is_dream and special else None
        return ids if start is None or ids[:1] == [start] else [start, *ids]

    @property
    def _is_dream(self) -> bool:
        return self.source.config.model_type == "Dream"

    def prepare(self, requests: Sequence[Instance]) -> Prepared:
        """The requests as token ids, checked.

        Raises:
          ValueError: naming the task and the problem.
        """
        names = [f"{r.task_name}, problem {r.doc_id}" for r in requests]
        if requests[0].request_type == "generate_until":
            for name, request in zip(names, requests, strict=True):
                self._check_sampling(name, _arguments(request)[1])
            prompts = [self.tok_encode(_arguments(request)[0]) for request in requests]
            targets: list[list[int]] = []
            room = [self.source.config.max_sequence_length - self.decode.gen_length] * len(prompts)
        else:
            pairs = [self._encode_pair(*_arguments(request)) for request in requests]
            prompts, targets = [list(pair[0]) for pair in pairs], [pair[1] for pair in pairs]
            room = [self.source.config.max_sequence_length - len(target) for target in targets]
        cut = [i for i, prompt in enumerate(prompts) if len(prompt) > room[i]]
        if cut and not self.truncate:
            i = max(cut, key=lambda i: len(prompts[i]) - room[i])
            raise ValueError(
                f"{names[i]}: the prompt has {len(prompts[i])} tokens and the model room for "
                f"{room[i]} beside the answer ({len(cut)} of {len(prompts)} prompts are too long): "
                "ask with fewer examples (--num-fewshot), for a shorter answer (--gen-length), or "
                "have them cut at their beginning (--truncate)"
            )
        for i in cut:
            prompts[i] = prompts[i][len(prompts[i]) - room[i] :]
        for i, target in enumerate(targets):
            if not target:
                raise ValueError(f"{names[i]}: an answer to be scored is empty")
            check_prompts([[*prompts[i], *target]], self.source.config, 0, [names[i]])
        if not targets:
            check_prompts(prompts, self.source.config, self.decode.gen_length, names)
        return Prepared(
            [np.asarray(prompt, np.int32) for prompt in prompts],
            [np.asarray(target, np.int32) for target in targets],
            len(cut),
        )

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts = self.prepare(requests).prompts
        if len(self.keeper.done) < len(requests):
            stopping, _ = with_ends(self.decode, self.tokenizer, self.source.config, chat=self.chat)
            keep_generations(
                self.source.model,
                prompts,
                stopping,
                self.keeper,
                batch_size=self.batch_size,
                seed=self.seed,
                what=self.what,
            )
        self.answers = [
            {**record, **self._answer(request, record.pop("ids"))._asdict()}
            for request, record in zip(requests, self.keeper.records(), strict=True)
        ]
        return [answer["text"] for answer in self.answers]

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[tuple[float, bool]]:
        prepared = self.prepare(requests)
        if len(self.keeper.done) < len(requests):
            keep_scores(
                self.source.model,
                [Request(*pair) for pair in zip(*prepared[:2], strict=True)],
                self.keeper,
                mc_num=self.mc_num,
                check_greedy=self.check_greedy,
                batch_size=self.batch_size,
                seed=self.seed,
                what=self.what,
            )
        zero = dict.fromkeys(RULES, 0)
        records = list(self.keeper.records())
        self.answers = [
            {
                "text": f"{record['value']!r}",
                "tokens": len(target),
                "nfe": self.mc_num,
                "refreshes": self.mc_num,
                "actual": zero,
                "potential": zero,
                **{name: record[name] for name in ("seconds", "compile_seconds")},
            }
            for record, target in zip(records, prepared.targets, strict=True)
        ]
        return [(record["value"], record["greedy"]) for record in records]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> NoReturn:
        raise ValueError(
            "a masked-diffusion model has no likelihood of a text token by token: tasks of the "
            "type loglikelihood_rolling (perplexities) cannot be evaluated"
        )

    def _loglikelihood_tokens(self, requests: Any, **kwargs: Any) -> NoReturn:
        """lm-eval's base class wants the method, but only its own `loglikelihood` calls it, which
        is replaced above."""
        raise AssertionError("not reached: `loglikelihood` scores text itself")

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """lm-eval's, which moves blanks from the end of a context to the answer. Without a context
        LLaDA's evaluator gives the model none; where a token is predicted in the column before it
        there must be one, the start of a text."""
        if context:
            return super()._encode_pair(context, continuation)
        answer = self.tok_encode(continuation, add_special_tokens=False)
        if not family_of(self.source.config).shift:
            return [], answer
        start = self.tokenizer.bos_token_id
        return [self.eot_token_id if start is None else start], answer

    def _check_sampling(self, name: str, options: dict[str, Any]) -> None:
        """A task's stop strings are followed; its length and its sampling are `decode`'s matter."""
        wanted = options.get("temperature", 0.0) if options.get("do_sample") else 0.0
        if wanted and not self.decode.temperature:
            raise ValueError(
                f"{name}: the task samples at temperature {wanted}; ask for it by --temperature"
            )

    def _answer(self, request: Instance, ids: list[int]) -> Answer:
        until = _arguments(request)[1].get("until") or []
        until = [until] if isinstance(until, str) else until
        if self.plain:
            _, ends = with_ends(self.decode, self.tokenizer, self.source.config, chat=self.chat)
            return as_text(self.tokenizer, np.asarray(ids), until, ends)
        return as_original(
            self.tokenizer,
            ids,
            until,
            model_type=self.source.config.model_type,
            eos_id=self.eot_token_id,
            whole=self.chat and is_humaneval(request),
        )


register_model("r2jax")(R2JaxLM)  # as a decorator it would hide the class from type checkers


def is_humaneval(request: Instance) -> bool:
    """Whether a request is of HumanEval, by its document, as the original evaluator tells."""
    return str(request.doc.get("task_id", "")).lower().startswith("humaneval")


def _arguments(request: Instance) -> tuple[Any, ...]:
    """Context and stop strings, or context and answer; lm-eval's types do not say so."""
    return request.args
