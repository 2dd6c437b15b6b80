"""Train a GPT on Shakespeare.

    python train_shakespeare.py --preset quick      a first look, in seconds
    python train_shakespeare.py --preset simple     the same, as PyTorch's layers would do it: characters, post-norm, Adam
    python train_shakespeare.py                     4 layers, width 128, 2,000 steps
    python train_shakespeare.py --preset large      6 layers, width 192: the best of about half an hour on 2 cores
    mpiexec -n 4 python train_shakespeare.py --batch-size 8 --shards 8      four processes, the bits of one (docs/TRAINING.md)
"""

import sys

try:
    import argparse
    import json
    import math
    import os
    import shlex
    from contextlib import nullcontext
    from dataclasses import fields, replace
    from pathlib import Path

    from minigpt import corpus
    from minigpt.checkpoint import CheckpointError, fingerprint
    from minigpt.config import CHOICES, GPTConfig, OptimizerConfig
    from minigpt.exits import delayed_interrupts
    from minigpt.files import write_atomically
    from minigpt.model import GPT
    from minigpt.plot import draw_losses
    from minigpt.sampling import stream
    from minigpt.shards import Alone
    from minigpt.tokenizer import ByteTokenizer, CharTokenizer
    from minigpt.trainer import FILE, TrainConfig, Trainer, TrainingError
except KeyboardInterrupt:           # the imports take long enough for a Ctrl-C
    sys.exit(130)

PRESETS = {
    # Of the text generator that this project grew from; see coder/lab/seed.py.
    "simple": (GPTConfig(block_size=1000, n_layer=3, position="learned", norm="layer", norm_order="last-final",
                         activation="relu", qk_norm=False, bias=True, head_bias=True, dropout=0.1),
               OptimizerConfig("adamw", learning_rate=3e-4, weight_decay=0.0, beta2=0.999, clip=0.0, warmup=0, cooldown=0.0),
               TrainConfig(steps=50, batch_size=8, window=32)),
    "quick": (GPTConfig(block_size=32, n_layer=3), OptimizerConfig(warmup=5), TrainConfig(steps=50, batch_size=8)),
    "default": (GPTConfig(block_size=128, activation="swiglu", n_hidden=352), OptimizerConfig(),
                TrainConfig(batch_size=6, shuffle=True)),
    "large": (GPTConfig(block_size=256, n_layer=6, n_head=6, n_embd=192, dropout=0.15), OptimizerConfig(),
              TrainConfig(steps=5000)),
    "english": (GPTConfig(block_size=512, n_layer=6, n_embd=256, activation="swiglu", n_kv_head=2, n_hidden=704),
                OptimizerConfig(), TrainConfig(steps=12000, batch_size=16, shuffle=True, validate_every=0, save_every=40)),
}
SAMPLES = [
    ("HAMLET: To be or not to be", 0.5, 10),
    ("JULIET: Romeo, Romeo", 0.8, 20),
    ("KING: What news", 1.2, 30),
]
WITHOUT_PROMPT = ("", 0.8, 25, 150, 123)    # prompt, temperature, top-k, tokens, seed
LEAST_LINE = 10                             # characters: the preset simple ends a sample at the first line break after more
KEPT = "samples.json"                       # beside the checkpoint: {"data": path or null, "samples": [{"step", "text"}, ...]}
KEPT_AFTER = 0, 10, 30, 100, 300, 1000, 3000, 10000         # steps, and after the last one


class KeepingTrainer(Trainer):
    """A Trainer that keeps what its model writes after some steps, for `python -m minigpt look`, and computes the same bits."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.data = None                    # the file that the text is from, if it is the user's own

    def step(self) -> float:
        if self.step_count in KEPT_AFTER and self.processes.rank == 0:
            self.keep_sample()
        return super().step()

    def keep_sample(self) -> None:
        """Nothing happens where the file cannot be written: a sample is no reason to end a run."""
        path, step = self.out / KEPT, self.step_count
        try:
            earlier = [s for s in json.loads(path.read_text("utf-8"))["samples"] if s["step"] < step] if step else []
        except (OSError, ValueError, KeyError, TypeError):
            earlier = []
        try:
            text = "".join(stream(self.model, self.tokenizer, "", 160, temperature=0.8, seed=42))
            samples = [*earlier, {"step": step, "text": text}]
            write_atomically(path, json.dumps({"data": self.data, "samples": samples}, indent=1).encode())
        except (OSError, ValueError):
            pass


def main(arguments: list[str] | None = None) -> None:
    try:
        with processes() as ranks, delayed_interrupts():
            train(parse(arguments), ranks)
    except (corpus.CorpusError, CheckpointError, TrainingError, ValueError, FloatingPointError, OSError) as error:
        sys.exit(f"train_shakespeare: {error}")
    except MemoryError:
        sys.exit("train_shakespeare: not enough memory for a run of this size")
    except KeyboardInterrupt:
        sys.exit("\nstopped without saving; if there is a checkpoint, --resume continues from it")


def processes():
    """The processes of this MPI run, as a context; without mpiexec, this one alone, and nothing of MPI is loaded."""
    if any(os.environ.get(name, "1") != "1" for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")):
        from minigpt.mpi import Processes
        return Processes()
    return nullcontext(Alone())


def train(options, ranks):
    text = ranks.first(lambda: corpus.load(options.data, options.corpus))
    print(f"text: {text.name}, {len(text.data):,} bytes")
    trainer = KeepingTrainer.resume(options.out, text.data, ranks) if options.resume else start(options, text.data, ranks)
    trainer.data = options.data and str(Path(options.data).resolve())
    describe(trainer)
    ranks.check(trainer.model)
    seconds, done = trainer.run(lambda: draw_losses(trainer.out / "loss.png", trainer.losses[:trainer.step_count],
                                                    trainer.validations))
    if not done:
        print(f"stopped after step {trainer.step_count:,}; to resume: {resume_command(options, ranks.count)}")
        sys.exit(130)
    if ranks.rank == 0:
        try:
            trainer.keep_sample()
            summarise(trainer, seconds, options.preset == "simple")
        except KeyboardInterrupt:
            sys.exit(130)                               # the run is done and saved


def resume_command(options, count=1):
    words = ["mpiexec", "-n", str(count)] * (count > 1) + ["python", sys.argv[0], "--resume", "--out", options.out]
    words += ["--data", options.data] if options.data else ["--corpus", options.corpus] * (options.corpus != "shakespeare")
    return shlex.join(words)


def parse(arguments):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, help="defaults of the options below (default: default)")
    parser.add_argument("--data", metavar="FILE", help="train on this text file")
    parser.add_argument("--corpus", choices=corpus.CORPORA, default="shakespeare", help="train on this corpus, fetched once")
    parser.add_argument("--tokenizer", choices=("bytes", "characters"),
                        help="what a token is (default: bytes; characters in simple)")
    parser.add_argument("--out", default="out", metavar="DIR", help=f"folder for {FILE} and loss.png (default: out)")
    parser.add_argument("--resume", action="store_true", help="continue the run in DIR with the options it was started with")
    parser.add_argument("-f", "--force", action="store_true", help="start a new run even if DIR already holds one")
    for config in (GPTConfig, OptimizerConfig, TrainConfig):
        add_fields(parser.add_argument_group(config.__name__), config)
    options = parser.parse_args(arguments)
    given = [f"--{name.replace('_', '-')}" for name, value in vars(options).items()
             if name in {*CONFIG_FIELDS, "preset", "tokenizer"} and value is not None or name == "force" and value]
    if options.resume and given:
        parser.error(f"--resume continues with the run's own options: leave out {', '.join(given)}")
    return options


CONFIG_FIELDS = {field.name for config in (GPTConfig, OptimizerConfig, TrainConfig) for field in fields(config)}


def add_fields(group, config):
    """An option for each field of the dataclass."""
    for field in fields(config):
        if field.name in ("vocab_size", "rope_factors"):
            continue                                    # follows from the tokenizer; only published models have it
        kind = {"type": boolean, "metavar": "yes|no"} if field.type is bool else {"type": field.type}
        if field.name in CHOICES:
            kind = {"choices": CHOICES[field.name]}
        group.add_argument(f"--{field.name.replace('_', '-')}", default=None, help=field.metadata["help"], **kind)


def boolean(word):
    if word not in ("yes", "no"):
        raise argparse.ArgumentTypeError("yes or no")
    return word == "yes"


def start(options, text, ranks=Alone()):
    """A new run: the preset with the changes from the command line."""
    path = Path(options.out) / FILE
    if ranks.rank == 0 and path.exists() and not options.force:
        raise TrainingError(f"{path} exists: --resume continues that run, --force replaces it, --out DIR keeps it")
    model_config, optimizer_config, train_config = (
        replace(config, **{field.name: getattr(options, field.name) for field in fields(config)
                           if getattr(options, field.name, None) is not None})
        for config in PRESETS[options.preset or "default"])
    tokenizer = ByteTokenizer()
    if (options.tokenizer or ("characters" if options.preset == "simple" else "bytes")) == "characters":
        try:
            tokenizer = CharTokenizer(text.decode())
        except UnicodeDecodeError:
            raise TrainingError("the text is not UTF-8, so it has no characters: pass --tokenizer bytes") from None
    model = GPT(replace(model_config, vocab_size=tokenizer.vocab_size), train_config.seed)
    trainer = KeepingTrainer(model, tokenizer, text, train_config, optimizer_config, options.out, ranks)
    if ranks.rank == 0:
        Path(options.out).mkdir(parents=True, exist_ok=True)    # now, rather than after an hour, if it cannot be
    return trainer


def describe(trainer):
    if trainer.processes.count > 1:
        print(trainer.processes)
    model, train = trainer.model.config, trainer.config
    count = sum(parameter.data.size for parameter in trainer.model.parameters().values())
    print(f"model: {model.n_layer} layers, {model.n_head} heads, width {model.n_embd}, windows of {model.block_size}, "
          f"{model.vocab_size} tokens: {count:,} parameters")
    print(f"run: {train.steps:,} steps of {train.batch_size} windows{f' of {train.window}' if train.window else ''}"
          f"{f' in {train.shards} shards' if train.shards > 1 else ''}, "
          f"{len(trainer.train_ids):,} tokens to train, {len(trainer.validation_ids):,} to validate", flush=True)


def summarise(trainer, seconds, simple):
    nats = trainer.validations[-1][1]
    characters = len(trainer.tokenizer.decode(trainer.validation_ids[1:])) / (len(trainer.validation_ids) - 1)
    tokens = trainer.config.batch_size * trainer.window * trainer.config.steps
    print(f"\nvalidation loss   {nats:.4f} nats per token"
          f"\n                  {nats / math.log(2) / characters:.4f} bits per character"
          f"\nperplexity        {math.exp(nats) if nats < 700 else math.inf:.3f} per token"
          f"\ntraining          {tokens:,} tokens; this part took {seconds:.0f} s"
          f"\nfingerprint       {fingerprint(trainer.model)}"
          f"\nsaved             {trainer.path}")
    if simple:
        losses = ", ".join(f"{step}: {loss:.4f}" for step, loss in enumerate(trainer.losses) if step % 10 == 0)
        print(f"training loss     {losses} nats, each before that step's update")
    samples = [(*sample, 100 if simple else 200, 42) for sample in SAMPLES] + [WITHOUT_PROMPT] * simple
    for prompt, temperature, top_k, tokens, seed in samples:
        print(f"\n--- temperature {temperature}, top-k {top_k}\n{prompt}", end="", flush=True)
        written = 0
        try:
            for piece in stream(trainer.model, trainer.tokenizer, prompt, tokens, temperature=temperature, top_k=top_k,
                                seed=seed):
                if simple and piece == "\n" and written > LEAST_LINE:
                    break
                print(piece, end="", flush=True)
                written += len(piece)
        except ValueError as error:
            print(f"\n({error})", end="")
        print()


if __name__ == "__main__":
    main()
