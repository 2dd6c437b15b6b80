"""1. Worked examples: four sequences as intervals, and back, where popular accounts often slip.

In exact fractions (coder/intervals.py).  Here a model is a row of probabilities for each position.

    >>> names, model = example("cat eats fish")
    >>> for symbol, probability, (low, high) in steps(names, model):
    ...     print(symbol, float(probability), f"[{float(low)}, {float(high)})")
    cat 0.5 [0.0, 0.5)
    eats 0.7 [0.0, 0.35)
    fish 0.4 [0.0, 0.14)

Decoding stretches the share in which the number lies to [0, 1); 0.18 / 0.7 is 0.257:

    >>> [(symbol, round(float(x), 4)) for symbol, x in stretch(Fraction("0.09"), 3, model)]
    [('cat', 0.09), ('eats', 0.18), ('fish', 0.2571)]
    >>> stretched = stretch(Fraction("0.02113"), 3, example("人工智能将")[1])
    >>> [(symbol, float(x)) for symbol, x in stretched]
    [('人工', 0.02113), ('智能', 0.4226), ('将', 0.52825)]

ceil(bits) digits point into an interval, but a complete code, whatever may follow it, can take one more:

    >>> names, model = example("W1 W2 W3")
    >>> ceil(bits(Fraction("0.192"))), shortest_code(interval(names, model))
    (3, '0011')
    >>> shortest_code((Fraction("0"), Fraction("0.14")))
    '000'

A probability of 0.95 costs 0.07 bits, one of 0.0001 costs 13.3:

    >>> round(bits(Fraction("0.95")), 2), round(bits(Fraction("0.0001")), 1)
    (0.07, 13.3)

And 0.00010101 in binary is not 0.02113, which begins 0.00000101:

    >>> float(number("00010101")), number("00000101") < Fraction("0.02113") < number("00000110")
    (0.08203125, True)
"""

from collections.abc import Iterator
from fractions import Fraction
from math import ceil

from ..intervals import Interval, Model, bits, decode, interval, shares, shortest_code, steps
from .material import table

# A row for each symbol of the sequence: {symbol: probability}, from the bottom of the interval to its top.
EXAMPLES = {
    "cat eats fish": [{"cat": "0.5", "dog": "0.3", "fish": "0.2"}, {"eats": "0.7", "sleeps": "0.3"},
                      {"fish": "0.4", "meat": "0.6"}],
    "人工智能将": [{"人工": "0.05", "...": "0.95"}, {"智能": "0.8", "...": "0.2"}, {"将": "0.6", "...": "0.4"}],
    "W1 W2 W3": [{"W1": "0.4", "...": "0.6"}, {"...": "0.4", "W2": "0.6"}, {"W3": "0.8", "...": "0.2"}],
    "AB": [{"A": "0.6", "B": "0.4"}] * 2,
}
SEQUENCES = {"cat eats fish": ("cat", "eats", "fish"), "人工智能将": ("人工", "智能", "将"),
             "W1 W2 W3": ("W1", "W2", "W3"), "AB": ("A", "B")}
NARROW = Fraction("0.3654321"), Fraction("0.3654343")       # 2.2e-6 wide
POINTS = {"cat eats fish": "0.09", "人工智能将": "0.02113", "W1 W2 W3": "0.25", "AB": "0.375"}


def example(name: str) -> tuple[tuple, Model]:
    """The symbols of an example, and its model."""
    rows = [{symbol: Fraction(p) for symbol, p in row.items()} for row in EXAMPLES[name]]
    return SEQUENCES[name], lambda past: rows[len(past)]


def stretch(x: Fraction, length: int, model: Model) -> Iterator[tuple[str, Fraction]]:
    """`length` times: the symbol in whose share x lies, and x, which is then mapped as that share is stretched to [0, 1)."""
    past = ()
    for _ in range(length):
        symbol, (low, high) = next(pair for pair in shares(model(past)).items() if pair[1][0] <= x < pair[1][1])
        yield symbol, x
        x, past = (x - low) / (high - low), (*past, symbol)


def number(code: str) -> Fraction:
    """0.code in binary."""
    return Fraction(int(code, 2), 2 ** len(code))


def run() -> dict[str, Interval]:
    """Print the examples; return the interval of each."""
    owned = {name: interval(*example(name)) for name in EXAMPLES} | {"a narrow interval": NARROW}
    rows = []
    for name, (low, high) in owned.items():
        codes = shortest_code((low, high), complete=False), shortest_code((low, high))
        for code in codes if name in EXAMPLES else ():
            symbols, model = example(name)
            assert decode(code, len(symbols), model) == symbols
        product = " x ".join(f"{float(p):g}" for _, p, _ in steps(*example(name))) if name in EXAMPLES else ""
        rows.append((name, product, f"[{float(low):.7g}, {float(high):.7g})", f"{bits(high - low):.2f}",
                     *(f"{code or 'none'} ({len(code)})" for code in codes)))
    table(("sequence", "probabilities", "interval", "bits", "shortest code that points", "shortest complete code"), *rows)
    print("\nEvery code of a sequence decodes to that sequence. Decoding by stretching, from a number inside:\n")
    paths = {name: stretch(Fraction(x), len(SEQUENCES[name]), example(name)[1]) for name, x in POINTS.items()}
    table(("sequence", "the number, and what it becomes"),
          *((name, ", ".join(f"{float(x):.5g} ({symbol})" for symbol, x in path)) for name, path in paths.items()))
    print("\nA symbol of probability p costs -log2 p bits:\n")
    table(("p", "bits"), *((p, f"{bits(Fraction(p)):.2f}") for p in ("0.95", "0.5", "0.01", "0.0001")))
    (W_points, W_complete), (points, complete) = rows[2][4:], rows[4][4:]
    print(f"""
Where popular accounts often slip:
- 0.00010101 in binary is {float(number("00010101")):.3f}; 0.02113 begins 0.00000101.
- In decoding "cat eats fish" from 0.09, the third number is 0.18 / 0.7 = {0.18 / 0.7:.3f}: divide by the length of the share.
- ceil(-log2 P) bits suffice to point into an interval, but a code that others may follow must be complete, and may need
  one more. [0.16, 0.352): {ceil(bits(Fraction("0.192")))} bits suffice, {W_points} points, {W_complete} is complete.
  [0.3654321, 0.3654343): {ceil(bits(NARROW[1] - NARROW[0]))} suffice, {points} points, {complete} is complete.

This shows how long a code is: -log2 of the product of the probabilities, rounded up, and at most one bit more. It does not
show that a computer can do it fast: these are exact fractions, which grow with every symbol. The range coder works with 64
bits of them.""")
    return owned


def plot(figure, results):
    """Each interval as it narrows, symbol by symbol."""
    for axes, name in zip(figure.subplots(len(EXAMPLES), 1, sharex=True), EXAMPLES):
        narrowing = list(steps(*example(name)))
        for depth, (_, _, (low, high)) in enumerate(narrowing):
            axes.barh(depth, float(high - low), left=float(low), color=f"C{depth}")
            axes.text(float(high) + 0.01, depth, f"[{float(low):g}, {float(high):g})", va="center", fontsize=8)
        axes.set_yticks(range(len(narrowing)), [f"p = {float(p):g}" for _, p, _ in narrowing])
        axes.set(xlim=(0, 1), ylim=(len(narrowing) - 0.5, -0.5))
    axes.set_xlabel("the interval, narrowed symbol by symbol")
