"""python -m minigpt sample: text from a trained model.  python -m minigpt verify: are the bits right here?"""

import argparse
import itertools
import os
import sys

from . import exhaustive, verify
from .checkpoint import CheckpointError, load_checkpoint
from .sampling import stream


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m minigpt", description="A GPT by hand.")
    commands = parser.add_subparsers(dest="command", required=True)
    sample = commands.add_parser("sample", help="write text, as the model makes it",
                                 formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    sample.add_argument("--model", default="out/model.safetensors", metavar="FILE", help="a checkpoint")
    sample.add_argument("--prompt", default="", help="the text to go on from")
    sample.add_argument("--tokens", type=int, default=500, help="how many to make at most")
    sample.add_argument("--temperature", type=float, default=0.8, help="0: always the likeliest; 1: as the model has it")
    sample.add_argument("--top-k", type=int, default=0, help="choose among the k likeliest; 0: among all")
    sample.add_argument("--top-p", type=float, default=1.0, help="choose among the likeliest that together have this share")
    sample.add_argument("--seed", type=int, default=42, help="another seed, another text")
    sample.add_argument("--stop", default="", metavar="TEXT", help="end where this text would come")
    check = commands.add_parser("verify", help="compute everything that must be the same on every machine, and compare")
    check.add_argument("--json", action="store_true", help="print the hashes alone, as a JSON object")
    check.add_argument("--exhaustive", action="store_true", help="instead: exp and log of all 2^32 floats, some minutes")
    options = parser.parse_args(arguments)
    try:
        if options.command == "verify" and options.exhaustive:
            sys.exit(not exhaustive.report())
        if options.command == "verify":
            sys.exit(not verify.report(verify.results(), verify.EXPECTED, options.json))
        if not 0 <= options.seed < 2 ** 64:
            raise ValueError(f"seed must be from 0 to 2^64 - 1, but is {options.seed}")
        checkpoint = load_checkpoint(options.model)
        pieces = stream(checkpoint.model, checkpoint.tokenizer, options.prompt, options.tokens, options.stop,
                        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p, seed=options.seed)
        first = next(pieces)                            # whatever is wrong comes out here, before any text
        sys.stdout.reconfigure(errors="replace")        # a terminal may not know every character
        for piece in itertools.chain([options.prompt, first], pieces, ["\n"]):
            sys.stdout.write(piece)
            sys.stdout.flush()
    except (CheckpointError, ValueError, FloatingPointError) as error:
        sys.exit(f"minigpt: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())          # the reader has had enough
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
