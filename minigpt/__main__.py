"""python -m minigpt sample: text from a trained model.  look: a page that shows what happens to a text inside a network.
verify: does this machine compute the same bits?"""

import sys

try:
    import argparse
    import itertools
    import os
    from pathlib import Path

    from . import __version__
    from .checkpoint import CheckpointError, load_checkpoint
    from .exits import one_sentence
    from .pretrained import PretrainedError, load
    from .sampling import stream
except KeyboardInterrupt:           # the imports take long enough for a Ctrl-C
    sys.exit(130)

DEFAULT = "out/model.safetensors"


def main(arguments: list[str] | None = None) -> None:
    with one_sentence("minigpt"):
        run(arguments)


def run(arguments):
    parser = argparse.ArgumentParser(prog="python -m minigpt", description="A GPT written by hand, from scratch.")
    parser.add_argument("--version", action="version", version=f"minigpt {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample", help="generate text with a trained model",
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    sample.add_argument("--model", default=DEFAULT, metavar="FILE",
                        help="a checkpoint, a GGUF file, a folder with config.json and model.safetensors, or smollm2")
    sample.add_argument("--prompt", default="", help="the text to continue")
    sample.add_argument("--tokens", type=int, default=500, help="number of tokens to generate, at most")
    sample.add_argument("--temperature", type=float, default=0.8,
                        help="0: always the likeliest token; 1: the model's own probabilities")
    sample.add_argument("--top-k", type=int, default=0, help="sample from the k likeliest tokens; 0: from all")
    sample.add_argument("--top-p", type=float, default=1.0,
                        help="sample from the likeliest tokens that together have this probability")
    sample.add_argument("--seed", type=int, default=42, help="seed of the random numbers")
    sample.add_argument("--stop", default="", metavar="TEXT", help="stop before this text")
    see = commands.add_parser("look", help="write a page that shows what happens to a text inside a network")
    see.add_argument("text", metavar="TEXT", help="the text to run through the network: a few words")
    see.add_argument("--model", metavar="FILE", help="as for sample, or a packed model (default: out/model.safetensors if it "
                     "exists, else the bundled model)")
    see.add_argument("--html", default="look.html", metavar="OUT", help="the page (default: look.html)")
    see.add_argument("--head", type=int, default=1, metavar="N", help="the attention head to show first; of a published "
                     "language model, the only one that is shown (default: 1)")
    check = commands.add_parser("verify", help="recompute everything that must be the same on every machine, and compare")
    check.add_argument("--json", action="store_true", help="print the hashes alone, as a JSON object")
    check.add_argument("--exhaustive", action="store_true",
                       help="check exp and log on all 2^32 float32 numbers instead, and print their largest errors (minutes)")
    options = parser.parse_args(arguments)
    try:
        if options.command == "verify":
            from . import exhaustive, verify                # which import, and compile, every kernel
            if options.exhaustive:
                sys.exit(not exhaustive.report())
            sys.exit(not verify.report(verify.results(), verify.EXPECTED, options.json))
        if options.command == "look":
            from .look import write         # a wing, which needs the coder
            model = options.model or (DEFAULT if Path(DEFAULT).is_file() else None)
            print(write(options.text, model, options.html, options.head))
            return
        if not 0 <= options.seed < 2 ** 64:
            raise ValueError(f"seed must be from 0 to 2^64 - 1, but is {options.seed}")
        published = options.model == "smollm2" or options.model.endswith(".gguf") or Path(options.model).is_dir()
        checkpoint = load(options.model) if published else load_checkpoint(options.model)
        checkpoint.model.freeze()
        pieces = stream(checkpoint.model, checkpoint.tokenizer, options.prompt, options.tokens, options.stop,
                        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=options.seed)
        first = next(pieces)                            # raises whatever is wrong, before any output
        sys.stdout.reconfigure(errors="replace")        # a terminal may not encode every character
        for piece in itertools.chain([options.prompt, first], pieces, ["\n"]):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except (CheckpointError, PretrainedError, ValueError, FloatingPointError) as error:
        sys.exit(f"minigpt: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())          # the reader closed the pipe
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
