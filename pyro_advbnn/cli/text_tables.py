"""Numbers and tables of them as text, for the terminal, the tables beside a report and its page; a dash where there is none."""
import math
from fractions import Fraction

NONE = "-"                                               # nothing measured, or nothing published


def table(rows, columns):
    """`rows` as text: a header and one aligned line each; columns is {title: function of a row}."""
    return aligned([list(columns), *([str(cell(row)) for cell in columns.values()] for row in rows)])


def aligned(lines):
    """Lines of texts, equally many in each, as text whose columns are aligned to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)) for line in lines)


def share(value, digits=1):
    """A share, 0 to 1, in percent, without its sign."""
    return decimal(None if value is None else 100 * value, digits)


def with_interval(row, name="accuracy", write=share):
    """A number of a row with its 95 % interval.   write: a function of a number, which makes its text."""
    if row[name] is None:
        return NONE
    return f"{write(row[name])} [{write(row[f'{name}_low'])}, {write(row[f'{name}_high'])}]"


def decimal(value, digits=2):
    """A number with so many digits after the point."""
    return NONE if value is None else f"{value:.{digits}f}"


def fraction(value):
    """A number as 1/n where it is one, else as a decimal of two digits."""
    if value is None:
        return NONE
    exact = Fraction(value).limit_denominator(1000)
    is_one_nth = exact.numerator == 1 < exact.denominator and math.isclose(exact, value)
    return f"1/{exact.denominator}" if is_one_nth else f"{value:.2g}"


def counted(number, noun, rest=""):
    """A number of things: "1 draw per gradient", "1,000 images"."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}{rest}"


def shown(value):
    """Any value of a record: numbers that are no integers with 4 digits."""
    if value in (None, ""):
        return NONE
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count(value):
    """An integer of a record with its thousands set apart."""
    return f"{value:,}" if isinstance(value, int) else shown(value)


def duration(seconds):
    """A time as people tell it."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{minutes[0]} min {minutes[1]:02} s" if minutes[0] < 60 else f"{hours[0]} h {hours[1]:02} min"
