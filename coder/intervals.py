"""Why prediction is compression: arithmetic coding in exact fractions.  Slow, and the specification of the fast coder.

Every sequence owns a part of [0, 1) as long as its probability: to extend it by a symbol is to take that symbol's share
of the interval, so probabilities multiply, as they should.  Any number inside names the sequence, and an interval of
length p holds one of about log2(1 / p) bits.  A likely sequence has a long interval, and so a short code.  To predict
better is to own a longer interval; nothing else is needed to compress.  [Rissanen 1976; Pasco 1976]

A model is a function from the symbols so far (a tuple) to {symbol: probability}, the same for encoder and decoder.

    >>> def model(past):
    ...     return {"A": Fraction("0.6"), "B": Fraction("0.4")}
    >>> for symbol, probability, (low, high) in steps("AB", model):
    ...     print(symbol, float(probability), f"{bits(probability):.2f} bits", f"[{float(low)}, {float(high)})")
    A 0.6 0.74 bits [0.0, 0.6)
    B 0.4 1.32 bits [0.36, 0.6)

A code of n bits, read as the binary fraction 0.code, is a number; with all that may follow it, it is a cylinder, 2^-n
long.  011 is 0.375, its cylinder [0.375, 0.5) lies inside [0.36, 0.6), and so it is complete: whatever follows, it means
AB.  1 is 0.5, which only points into the interval: its cylinder is [0.5, 1), and followed by a 1, it means BA.  That
suffices where the decoder knows that the code ends here; codes that follow each other unmarked must be complete.

    >>> AB = interval("AB", model)
    >>> shortest_code(AB), shortest_code(AB, complete=False)
    ('011', '1')
    >>> decode("011", 2, model), decode("1", 2, model), decode("11", 2, model)
    (('A', 'B'), ('A', 'B'), ('B', 'A'))

A complete code may need a bit more than log2(1 / p) rounded up: [0.16, 0.352) is 2.38 bits, and takes 4.

    >>> W = Fraction("0.16"), Fraction("0.352")
    >>> shortest_code(W), shortest_code(W, complete=False)
    ('0011', '01')
"""

from collections.abc import Callable, Hashable, Iterable, Iterator
from fractions import Fraction
from math import ceil, log2

Interval = tuple[Fraction, Fraction]
Model = Callable[[tuple], dict[Hashable, Fraction]]
WHOLE = Fraction(0), Fraction(1)        # an interval is (low, high): the numbers low <= x < high


def narrow(interval: Interval, low: Fraction, high: Fraction) -> Interval:
    """The part of `interval` from its fraction `low` to its fraction `high`."""
    start, length = interval[0], interval[1] - interval[0]
    return start + length * low, start + length * high


def shares(probabilities: dict[Hashable, Fraction]) -> dict[Hashable, Interval]:
    """{symbol: its interval} for {symbol: probability}: side by side in this order, they fill [0, 1)."""
    result, high = {}, Fraction(0)
    for symbol, probability in probabilities.items():
        low, high = high, high + Fraction(probability)
        result[symbol] = low, high
    if high != 1 or min(probabilities.values()) <= 0:
        raise ValueError("probabilities must be positive and sum to exactly 1 (write Fraction('0.6'): no float is 0.6)")
    return result


def steps(symbols: Iterable, model: Model) -> Iterator[tuple[Hashable, Fraction, Interval]]:
    """For each symbol in turn: (symbol, its probability, the interval of the sequence that ends with it)."""
    symbols, current = tuple(symbols), WHOLE
    for i, symbol in enumerate(symbols):
        share = shares(model(symbols[:i])).get(symbol)
        if share is None:
            raise ValueError(f"the model gives no probability to {symbol!r}, symbol {i} of the sequence")
        current = narrow(current, *share)
        yield symbol, share[1] - share[0], current


def interval(symbols: Iterable, model: Model) -> Interval:
    """The interval of the whole sequence.  Two different sequences of the same length never overlap."""
    return ([WHOLE] + [current for _, _, current in steps(symbols, model)])[-1]


def bits(probability: Fraction) -> float:
    """log2(1 / probability): the cost of a symbol, or of an interval of this length, however tiny."""
    return log2(Fraction(probability).denominator) - log2(Fraction(probability).numerator)


# Of the multiples of 2^-n, one lies in the interval if 2^-n <= length, and two in a row do if 2 * 2^-n <= length.  So
#     pointing < bits(length) + 1,    complete < bits(length) + 2.
def shortest_code(interval: Interval, complete: bool = True) -> str:
    """The shortest code, as a string of 0 and 1, whose number lies in `interval`; if `complete`, its whole cylinder does."""
    low, high = interval
    n = 0
    while True:
        k = ceil(low * 2 ** n)                              # k / 2^n is the first candidate of n bits
        if k + 1 <= high * 2 ** n if complete else k < high * 2 ** n:
            return format(2 ** n + k, "b")[1:]              # the n bits of k, leading zeros and all
        n += 1


def decode(code: str, length: int, model: Model) -> tuple:
    """The first `length` symbols (a tuple) of the sequence whose interval holds 0.code.

    No interval has to be kept: the share in which the number lies is stretched to [0, 1) again.
    """
    x, symbols = Fraction(int("0" + code, 2), 2 ** len(code)), ()
    while len(symbols) < length:
        symbol, (low, high) = next(pair for pair in shares(model(symbols)).items() if pair[1][0] <= x < pair[1][1])
        x = (x - low) / (high - low)
        symbols += symbol,
    return symbols
