"""The values of records as texts for readers, a dash where there is none."""
import math

NOTHING = "–"


def of(value):
    """A value: numbers that are no integers with 4 digits."""
    if value in (None, "", "-"):
        return NOTHING
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def count(value):
    """An integer with its thousands set apart."""
    return f"{value:,}" if isinstance(value, int) else of(value)


def fixed(value, digits):
    """A number in the given format."""
    return f"{value:{digits}}" if _is_number(value) else NOTHING


def percent(value):
    """A share, 0 to 1, in percent."""
    return fixed(value, ".1%").replace("%", " %")


def draws(number, per=" per gradient"):
    """A number of draws of the weights."""
    return f"{of(number)} {'draw' if number == 1 else 'draws'}{per}"


def duration(seconds):
    """A time as people tell it."""
    if not _is_number(seconds):
        return NOTHING
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, hours = divmod(round(seconds), 60), divmod(round(seconds / 60), 60)
    return f"{minutes[0]} min {minutes[1]:02} s" if minutes[0] < 60 else f"{hours[0]} h {hours[1]:02} min"


def _is_number(value):
    """Whether there is a finite float for it; a record may hold an integer of hundreds of digits."""
    return isinstance(value, float) and math.isfinite(value) or isinstance(value, int) and abs(value) < 2**63
