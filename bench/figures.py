"""How figures are shown to people: their headings, and their numbers with as many digits as mean something."""

_HEADINGS = {
    "images_s": "images/s",
    "gb_s": "GB/s",
    "tflop_s": "TFLOP/s",
    "forward_tflop_s": "forward TFLOP/s",
    "backward_tflop_s": "backward TFLOP/s",
    "gflop_image": "GFLOP/image",
    "share_of_copy": "of copy",
    "share_of_gather": "of gather",
    "share_of_matmul": "of matmul",
    "share_of_write": "of write",
    "stall_share": "waits for data",
    "over_best_peer": "x best peer",
    "over_linear": "x linear",
    "memory_over_one": "memory x 1 copy",
    "own_memory_over_one": "own memory x 1 copy",
    "rate_over_one": "rate x 1 copy",
    "over_import_torch_s": "less import torch s",
}
_QUARTILES = ("_q1", "_q3")


def heading(value: str) -> str:
    """A value's heading, with its unit."""
    if value in _HEADINGS:
        return _HEADINGS[value]
    name, _, unit = value.rpartition("_")
    return f"{name.replace('_', ' ')} {unit.upper() if unit in ('mb', 'gb') else unit}".strip()


def number(value: str, amount: float) -> str:
    """An amount of a value as text: shares as percentages, factors with an x, else three or four digits."""
    if value.startswith("share_of") or value.endswith("_share"):
        return f"{100 * amount:.1f} %" if amount < 0.1 else f"{100 * amount:.0f} %"
    if value.startswith(("over_", "memory_over", "own_memory_over", "rate_over")) and not value.endswith("_s"):
        return f"{amount:.2f}x"
    if value == "rounds":
        return f"{amount:.0f}"
    if value == "seconds" or abs(amount) < 100:
        return f"{amount:.3g}"
    return f"{amount:,.0f}"


def shown(values: list[str]) -> list[str]:
    """The values that people are shown, of those that there are: quartiles go beside their median."""
    return [value for value in values if not value.endswith(_QUARTILES) and value != "rounds"]


def with_quartiles(value: str, values: dict[str, float]) -> str:
    """A median with its quartiles in brackets, where there are any that differ."""
    text = number(value, values[value])
    q1, q3 = values.get(f"{value}_q1"), values.get(f"{value}_q3")
    if q1 is None or q3 is None or q1 == q3:
        return text
    return f"{text} [{number(value, q1)}-{number(value, q3)}]"
