"""What a GPT and its optimiser are: every choice, with its default."""

from dataclasses import dataclass

CHOICES = {
    "position": ("rotary", "learned"),
    "norm": ("layer", "rms"),
    "norm_order": ("first", "last"),
    "activation": ("relu2", "gelu", "relu"),
}


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int = 256         # V: how many tokens there are
    block_size: int = 64          # most tokens in a window
    n_layer: int = 4              # blocks
    n_head: int = 4               # H: heads in each attention
    n_embd: int = 128             # C: channels of the residual stream; a head has D = C / H
    position: str = "rotary"      # how a token knows its place: rotary or learned
    norm: str = "rms"             # layer or rms
    norm_order: str = "first"     # first: before each sublayer; last: after the sum, as in the original Transformer
    activation: str = "relu2"     # relu2 (squared ReLU), gelu or relu
    qk_norm: bool = True          # normalise queries and keys
    bias: bool = False            # in the linear layers and layer norms
    tied: bool = False            # the head's weight is the token embedding
    dropout: float = 0.0          # probability, in the residual branches and after the embedding

    def __post_init__(self):
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, but is {value!r}")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, but is {getattr(self, name)!r}")
        for name in ("qk_norm", "bias", "tied"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, but is {getattr(self, name)!r}")
        if not isinstance(self.dropout, (int, float)) or isinstance(self.dropout, bool) or not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be at least 0 and below 1, but is {self.dropout!r}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd ({self.n_embd}) must be a multiple of n_head ({self.n_head})")
        if self.position == "rotary" and self.n_embd // self.n_head % 2:
            raise ValueError(f"rotary positions turn pairs of channels, but a head has {self.n_embd // self.n_head}")


@dataclass(frozen=True)
class OptimizerConfig:
    optimizer: str = "muon"           # muon (for the matrices inside the blocks, AdamW for the rest) or adamw
    learning_rate: float = 3e-3       # of AdamW, at its peak
    muon_rate: float = 0.02           # of Muon, at its peak
    weight_decay: float = 0.1         # of matrices, times the learning rate
    beta1: float = 0.9                # AdamW: memory of the mean gradient
    beta2: float = 0.99               # AdamW: memory of its square
    momentum: float = 0.95            # Muon: memory of the mean gradient
    clip: float = 1.0                 # largest norm of the whole gradient; 0: any
    warmup: int = 50                  # steps over which the rates rise from 0
    cooldown: float = 1.0             # last part of the run, over which they fall in a line to 0

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
