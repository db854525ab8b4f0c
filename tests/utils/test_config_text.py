"""The config a weight file carries is read without running it."""

import pytest

from pointcept3m.utils.config import Config
from pointcept3m.utils.config_text import parse_config_text


def test_what_a_config_writes_is_read_back():
    cfg = Config(
        seed=-3, data={"train": {"type": "X", "lambda": [1, 2.5e-3]}}, mask=None, limit=float("inf"), low=float("-inf"),
        pair=(1,), empty=(), nested=[{"a": (1, [2])}], text="it's\nfine", flag=True, chosen={1, 2}, rows=range(3),
    )  # fmt: skip
    again = Config.fromtext(cfg.pretty_text)
    assert again.to_dict() == cfg.to_dict()
    assert again.data.train["lambda"] == [1, 2.5e-3] and again.pair == (1,)


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "a = __import__('os').system('true')",
        "a = open('/etc/passwd')",
        "a = [x for x in range(3)]",
        "a = b",
        "a = 2 ** 100",
        "a = dict(**{'b': 1})",
        "a = float(x=1)",
        "a.b = 1",
        "a = 1 if True else 2",
        "a = f'{1}'",
        "a = (",
        "a = " + "(" * 5000 + ")" * 5000,
    ],
)
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match="weight.pth"):
        parse_config_text(text, "weight.pth")


def test_a_text_without_end_is_refused():
    with pytest.raises(ValueError, match="characters"):
        parse_config_text("a = '" + "x" * 5_000_000 + "'")
