"""What a GPT and its optimiser are: every choice, with its default.  Imports nothing of Numba."""

from dataclasses import asdict, dataclass, field, fields
from typing import Any


def option(default: Any, help: str) -> Any:
    """A dataclass field with that default.  The help is in its metadata, from where a command line can show it."""
    return field(default=default, metadata={"help": help})


CHOICES = {
    "position": ("rotary", "learned"),
    "norm": ("layer", "rms"),
    "norm_order": ("first", "last", "last-final"),
    "activation": ("relu2", "gelu", "relu", "swiglu"),
}
# Fields that files and fingerprints leave out where they have their default, so those of older models are what they were.
LEFT_OUT = ("n_kv_head", "n_hidden", "rope_theta", "rope_factors", "norm_epsilon", "qkv_bias", "head_bias")


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int = option(256, "V: size of the vocabulary")
    block_size: int = option(64, "largest number of tokens in a window")
    n_layer: int = option(4, "number of Transformer blocks")
    n_head: int = option(4, "H: attention heads per block")
    n_embd: int = option(128, "C: channels of the residual stream; a head has D = C / H")
    position: str = option("rotary", "position encoding: rotary or learned")
    norm: str = option("rms", "layer (LayerNorm) or rms (RMSNorm)")
    norm_order: str = option("first", "first: before each sublayer (pre-norm); last: after each residual sum (post-norm); "
                                     "last-final: as last, and once more before the head")
    activation: str = option("relu2", "of the feed-forward layer: relu2 (squared ReLU), gelu, relu, or swiglu (gated)")
    qk_norm: bool = option(True, "RMSNorm on queries and keys")
    bias: bool = option(False, "biases in the linear layers and layer norms")
    tied: bool = option(False, "tied weights: the head uses the token embedding")
    dropout: float = option(0.0, "dropout probability, in the residual branches and after the embedding")
    n_kv_head: int = option(0, "key/value heads, each shared by a group of the attention heads; 0: as many as n_head")
    n_hidden: int = option(0, "hidden channels of the feed-forward layer; 0: 4 * n_embd")
    rope_theta: float = option(10000.0, "base of the rotary frequencies, theta^(-2i/D); from 1 up")
    rope_factors: tuple[float, ...] = option((), "divisors of the D / 2 rotary frequencies, for long windows; none: all 1")
    norm_epsilon: float = option(1e-5, "epsilon of all norms: what is added to the mean square before the root")
    qkv_bias: bool = option(False, "biases of queries, keys and values, also where bias is no")
    head_bias: bool = option(False, "a bias of the head, which must not be tied")

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}")
        for name in ("n_kv_head", "n_hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise ValueError(f"{name} must be a whole number of at least 0, but is {value!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {getattr(self, name)!r}")
        for name in ("qk_norm", "bias", "tied", "qkv_bias", "head_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, but is {getattr(self, name)!r}")
        if not isinstance(self.dropout, (int, float)) or isinstance(self.dropout, bool) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, but is {self.dropout!r}")
        for name, least, most in ("rope_theta", 1, 1e12), ("norm_epsilon", 1e-12, 1):
            if not _is_number(getattr(self, name)) or not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must be from {least} to {most}, but is {getattr(self, name)!r}")
            object.__setattr__(self, name, float(getattr(self, name)))              # 10000 and 10000.0 are one model
        factors = self.rope_factors
        if not isinstance(factors, (list, tuple)) or not all(_is_number(f) and 1 <= f < 1e9 for f in factors):
            raise ValueError(f"rope_factors must be numbers of at least 1, but is {factors!r}")
        object.__setattr__(self, "rope_factors", tuple(map(float, factors)))
        if self.head_bias and self.tied:
            raise ValueError("a tied head has no bias: head_bias and tied cannot both be true")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise ValueError(f"rotary positions turn pairs of channels, but a head has {self.n_embd // self.n_head}")
        if self.n_head % self.kv_heads:
            raise ValueError(f"n_head ({self.n_head}) must be a multiple of n_kv_head ({self.n_kv_head})")
        if len(self.rope_factors) not in (0, self.head_size // 2):
            raise ValueError(f"rope_factors must be one for each of {self.head_size // 2} frequencies, but are "
                             f"{len(self.rope_factors)}")

    @property
    def head_size(self) -> int:
        """D = C / H."""
        return self.n_embd // self.n_head

    @property
    def kv_heads(self) -> int:
        """How many heads keys and values have."""
        return self.n_kv_head or self.n_head

    @property
    def hidden(self) -> int:
        """How many channels the feed-forward layer has inside."""
        return self.n_hidden or 4 * self.n_embd

    def to_json(self) -> dict[str, Any]:
        """The fields as files store them, all but those of LEFT_OUT that have their default; GPTConfig(**fields) reads them."""
        default = {field.name: field.default for field in fields(self)}
        return {name: value for name, value in asdict(self).items() if name not in LEFT_OUT or value != default[name]}


def _is_number(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class OptimizerConfig:
    optimizer: str = option("muon", "adamw, or muon (for the matrices inside the blocks, with AdamW for the rest)")
    learning_rate: float = option(3e-3, "peak learning rate of AdamW")
    muon_rate: float = option(0.02, "peak learning rate of Muon")
    weight_decay: float = option(0.1, "weight decay of matrices, times the learning rate")
    beta1: float = option(0.9, "AdamW: decay of the first moment estimate")
    beta2: float = option(0.99, "AdamW: decay of the second moment estimate")
    momentum: float = option(0.95, "Muon: decay of the momentum")
    clip: float = option(1.0, "gradient clipping: largest norm of the whole gradient; 0: none")
    warmup: int = option(50, "warm-up: steps over which the rates rise linearly from 0")
    cooldown: float = option(1.0, "cool-down: last fraction of the steps, over which they fall linearly to 0")

    def __post_init__(self):
        if self.optimizer not in ("muon", "adamw"):
            raise ValueError(f"optimizer must be muon or adamw, but is {self.optimizer!r}")
        for name in ("learning_rate", "muon_rate", "weight_decay", "clip"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be a number of at least 0, but is {getattr(self, name)!r}")
        for name in ("beta1", "beta2", "momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, but is {getattr(self, name)!r}")
        if not isinstance(self.warmup, int) or self.warmup < 0:
            raise ValueError(f"warmup must be a whole number of steps, but is {self.warmup!r}")
        if not 0 <= self.cooldown <= 1:
            raise ValueError(f"cooldown must be from 0 to 1, but is {self.cooldown!r}")
