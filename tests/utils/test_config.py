"""Config files: inheritance, placeholders, options, round trip, and the text of every error."""

import shlex

import pytest

from pointcept3m.utils.config import SETTINGS, Config, ConfigDict, parse_options


@pytest.fixture
def write(tmp_path):
    """`write("a/b.py", text)` makes a file below tmp_path/configs and returns its path."""

    def make(name: str, text: str):
        path = tmp_path / "configs" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return make


def test_base_files_merge_and_delete(write):
    write("_base_/runtime.py", "epoch = 100\nhooks = [dict(type='A'), dict(type='B')]\nmodel = dict(type='M', backbone=dict(type='X', depth=3))\n")
    write("_base_/schedule.py", "optimizer = dict(type='SGD', lr=0.1, momentum=0.9)\n")
    path = write(
        "rooms/leaf.py",
        "_base_ = ['../_base_/runtime.py', '../_base_/schedule.py']\nepoch = 5\n"
        "model = dict(backbone=dict(depth=5))\noptimizer = dict(_delete_=True, type='AdamW', lr=0.2)\nhooks = [dict(type='C')]\n",
    )
    cfg = Config.fromfile(path)
    assert cfg.to_dict() == dict(
        epoch=5,
        hooks=[dict(type="C")],
        model=dict(type="M", backbone=dict(type="X", depth=5)),
        optimizer=dict(type="AdamW", lr=0.2),
    )
    assert cfg.model.backbone.depth == 5 and cfg.hooks[0].type == "C" and cfg.filename == str(path)


def test_base_may_be_one_string_and_have_bases(write):
    write("a.py", "seed = 1\nepoch = 1\n")
    write("b.py", "_base_ = 'a.py'\nepoch = 2\n")
    assert Config.fromfile(write("c.py", "_base_ = './b.py'\nbatch_size = 3\n")).to_dict() == dict(seed=1, epoch=2, batch_size=3)


def test_placeholders(write):
    write("base.py", "num = 7\nbatch_size = num\nmodel = dict(names=['x', 'y'], lr=0.5)\n")
    path = write(
        "leaf.py",
        "_base_ = 'base.py'\n"
        "epoch = {{ _base_.batch_size }} * 2  # not {{ _base_.nothing }} in a comment\n"
        "seed = {{ _base_.num }}\n"
        "data = dict(names='{{ _base_.model.names }}', first={{_base_.model.names.0}}, text='of {{ _base_.model.lr }}')\n"
        "save_path = '{{ fileDirname }}/exp/{{ fileBasenameNoExtension }}{{ fileExtname }}'\ntask = '{{ fileBasename }}'\n",
    )
    cfg = Config.fromfile(path)
    assert (cfg.epoch, cfg.seed) == (14, 7)
    assert cfg.data.to_dict() == dict(names=["x", "y"], first="x", text="of 0.5")
    assert cfg.save_path == f"{path.parent}/exp/leaf.py" and cfg.task == "leaf.py"


def test_placeholder_is_a_copy(write):
    """Appending to a value taken from a base must not change the base's own entry."""
    write("base.py", "hooks = [1]\n")
    cfg = Config.fromfile(write("leaf.py", "_base_ = 'base.py'\nlist_ = {{ _base_.hooks }}\nlist_.append(2)\ndata = dict(a=list_)\n"))
    assert cfg.hooks == [1] and cfg.data.a == [1, 2]


def test_helper_variables_are_no_settings_and_options_reach_them(write):
    path = write("a.py", "from math import pi\nroot = 'data/x'\ndata = dict(train=dict(data_root=root), val=dict(data_root=root + '/v', angle=pi))\n")
    assert set(Config.fromfile(path)) == {"data"}
    cfg = Config.fromfile(path, {"root": "/y", "data.train.split": "z"})
    assert cfg.data.to_dict() == dict(train=dict(data_root="/y", split="z"), val=dict(data_root="/y/v", angle=pytest.approx(3.14159, 1e-4)))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("normalize.mode", "normalize is a helper variable of .*a.py, whose entries cannot be set by dots; it can be as a whole: "),
        ("normalize.mod", "normalize, a helper variable of .*a.py, has no 'mod'; did you mean 'mode'"),
        ("normalise.mode", "the config has no 'normalise'; did you mean 'normalize'"),
        ("size.x", "size is a helper variable .* --options size=VALUE"),
        ("optimiser.lr", "the config has no 'optimiser'; did you mean 'optimizer'"),
    ],
)
def test_entries_of_helper_variables(write, name, sentence):
    path = write("a.py", "normalize = dict(type='N', mode='a')\nsize = 3\ndata = dict(n=normalize, s=size)\n")
    with pytest.raises(KeyError, match=sentence):
        Config.fromfile(path, {name: "b"})


def test_the_helper_variable_that_an_error_shows_does_what_was_wanted(write):
    path = write("a.py", "normalize = dict(type='N', mode='a')\ndata = dict(n=normalize)\n")
    with pytest.raises(KeyError) as caught:
        Config.fromfile(path, parse_options(["normalize.mode=b"]))
    (word,) = shlex.split(caught.value.args[0].split("--options ")[1])
    assert Config.fromfile(path, parse_options([word])).data.to_dict() == dict(n=dict(type="N", mode="b"))


def test_pointcept_imports_come_from_here(write):
    path = write("a.py", "from pointcept.utils.registry import near_names\nimport pointcept.utils.registry\ntask = near_names('zz', ['ab'])\n")
    import sys

    assert Config.fromfile(path).task == "known: ab"
    assert not any(name == "pointcept" or name.startswith("pointcept.") for name in sys.modules)


def test_dump_loads_back_equal(tmp_path):
    cfg = Config(
        dict(
            weight=None,
            epoch=3,
            data=dict(train=dict(transform=[dict(type="A", p=0.5, keys=("coord",)), dict(type="B", empty={}, nested=[[1, 2], (3,)])])),
            model={"a-b": 1, "class": 2, "text": "it's \"q\"\nnew", "inf": float("inf"), "set": {1, 2}, "big": list(range(60))},
            optimizer=dict(type="SGD", lr=1e-300, names=tuple(f"name{i}" for i in range(30))),
        )
    )
    cfg.dump(tmp_path / "config.py")
    again = Config.fromfile(tmp_path / "config.py")
    assert again == cfg and again.to_dict() == cfg.to_dict()
    assert isinstance(again.data.train.transform[0]["keys"], tuple)


def test_dump_of_numpy_numbers_and_refusal_of_objects(tmp_path):
    import numpy as np

    Config(dict(seed=np.int64(3), clip_grad=np.float32(0.5))).dump(tmp_path / "config.py")
    assert Config.fromfile(tmp_path / "config.py").to_dict() == dict(seed=3, clip_grad=0.5)
    with pytest.raises(TypeError, match=r"model\.a\.1 is a object"):
        Config(dict(model=dict(a=[1, object()]))).dump(tmp_path / "other.py")
    assert not (tmp_path / "other.py").exists()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3), ("None", None), ("none", None), ("true", True), ("False", False), ("text", "text"), ("'3'", "3"),
        ("[1, 2]", [1, 2]), ("(1,2)", (1, 2)), ("1,2", [1, 2]), ("a,b", ["a", "b"]), ("[a,b]", ["a", "b"]), ("{'a': 1}", {"a": 1}),
        ("dict(kind='scene', rows=[dict(a=-1)])", {"kind": "scene", "rows": [{"a": -1}]}), ("dict (a, b)", "dict (a, b)"),
        ("exp/run=1", "exp/run=1"), ("a sentence, with comma", "a sentence, with comma"), ("[]", []), ("", ""),
    ],
)  # fmt: skip
def test_option_values(text, value):
    assert parse_options([f"a.b={text}"]) == {"a.b": value}


def test_option_without_equals():
    with pytest.raises(ValueError, match="wanted name=value"):
        parse_options(["epoch"])


@pytest.mark.parametrize("text", ["dict(kind=scene, regulariser=log)", "dict(kind='scene'", "dict(a=open('x'))"])
def test_an_option_that_begins_as_a_dict_is_one_or_an_error(text):
    with pytest.raises(ValueError, match="option"):
        parse_options([f"uncertainty={text}"])


def test_merge_from_dict():
    cfg = Config(dict(epoch=1, hooks=[dict(type="A"), dict(type="B", n=1)], optimizer=dict(type="SGD", lr=1), model=dict(a=dict(b=1))))
    cfg.merge_from_dict({"hooks.1.n": 5, "hooks.0.new": 1, "optimizer.momentum": 0.9, "epoch": 3, "model.a": {"c": 2}, "seed": 4, "hooks.-1.m": 6})
    assert cfg.hooks[0].new == 1 and cfg.hooks[1].n == 5 and cfg.hooks[1].m == 6
    assert cfg.optimizer.to_dict() == dict(type="SGD", lr=1, momentum=0.9)
    assert cfg.model.to_dict() == dict(a=dict(b=1, c=2)) and (cfg.epoch, cfg.seed) == (3, 4)
    cfg.merge_from_dict({"model.a": {"_delete_": True, "d": 1}})
    assert cfg.model.a.to_dict() == dict(d=1)


@pytest.mark.parametrize(
    ("options", "kind", "sentence"),
    [
        ({"epok": 1}, KeyError, "did you mean 'epoch'"),
        ({"optimiser.lr": 1}, KeyError, "did you mean 'optimizer'"),
        ({"model.bakbone.depth": 1}, KeyError, "model has no 'bakbone'; did you mean 'backbone'"),
        ({"hooks.5.n": 1}, IndexError, "hooks has 1 entries, got index 5"),
        ({"hooks.first.n": 1}, KeyError, "hooks is a list, wanted a number"),
        ({"epoch.x": 1}, TypeError, "epoch is 1, which has no entry 'x'"),
    ],
)
def test_option_errors(options, kind, sentence):
    cfg = Config(dict(epoch=1, hooks=[dict(type="A")], optimizer=dict(lr=1), model=dict(backbone=dict(depth=1))))
    with pytest.raises(kind, match=sentence):
        cfg.merge_from_dict(options)


@pytest.mark.parametrize(
    ("text", "kind", "sentence"),
    [
        ("eval_epok = 3\n", KeyError, "unknown setting 'eval_epok'; did you mean 'eval_epoch'"),
        ("_base_ = 'basse.py'\n", FileNotFoundError, "near it: .*base.py"),
        ("_base_ = ['base.py', 'other.py']\n", KeyError, "'epoch' is set in two bases"),
        ("_base_ = name\n", ValueError, "_base_ must be a string or a list"),
        ("_base_ = '../../outside.py'\n", ValueError, "lies outside"),
        ("_base_ = 'leaf.py'\n", ValueError, "bases form a cycle"),
        ("epoch = = 3\n", ValueError, "line 1"),
        ("_base_ = 'base.py'\nseed = {{ _base_.epoc }}\n", KeyError, "did you mean 'epoch'"),
        ("_base_ = 'base.py'\nhooks = dict(a=1)\n", TypeError, "'hooks' is a list below"),
        ("_base_ = 'base.py'\nroot = 'z'\n", KeyError, "'root' is a helper variable of a base and has no effect here; `_options_ = dict\\(root=...\\)` changes it"),
    ],
)
def test_file_errors(write, tmp_path, text, kind, sentence):
    (tmp_path / "outside.py").write_text("epoch = 1\n")
    write("base.py", "root = 'a'\nepoch = 100\nhooks = []\ntask = root\n")
    write("other.py", "epoch = 1\n")
    with pytest.raises(kind, match=sentence):
        Config.fromfile(write("leaf.py", text))


def test_missing_file_and_other_format(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        Config.fromfile(tmp_path / "no" / "file.py")
    with pytest.raises(ValueError, match="only Python files"):
        Config.fromfile(tmp_path / "file.yaml")
    (tmp_path / "file.py").write_text("epoch = 1\n")
    with pytest.raises(KeyError, match="option 'epohc' is no setting of .*did you mean 'epoch'"):
        Config.fromfile(tmp_path / "file.py", {"epohc": 2})


def test_attribute_error_names_near_entries():
    with pytest.raises(AttributeError, match="config has no 'epocs'; did you mean 'epoch'"):
        _ = Config(dict(epoch=1)).epocs
    assert not hasattr(ConfigDict(), "anything")


def test_default_runtime_says_what_the_code_does():
    from pathlib import Path

    from pointcept3m.engines.defaults import RUNTIME_DEFAULTS

    path = Path(__file__).parents[2] / "configs/_base_/default_runtime.py"
    assert Config.fromfile(path).to_dict() == RUNTIME_DEFAULTS
    assert set(RUNTIME_DEFAULTS) <= SETTINGS


def test_a_file_changes_helper_variables_of_its_bases(write):
    """`_options_` does for a file what --options does for the command line, which wins over it, as a later file does."""
    write("base.py", "width = 4\nsplit = 'train'\nmodel = dict(width=width, twice=2 * width)\ndata = dict(split=split)\n")
    write("middle.py", "_base_ = 'base.py'\n_options_ = dict(width=8, split=('a', 'b'))\n")
    top = write("top.py", "_base_ = 'middle.py'\n_options_ = {'width': 16}\nepoch = 3\n")
    assert Config.fromfile(write("middle2.py", "_base_ = 'middle.py'\n")).model.to_dict() == dict(width=8, twice=16)
    cfg = Config.fromfile(top)
    assert cfg.model.to_dict() == dict(width=16, twice=32) and cfg.data.split == ("a", "b") and cfg.epoch == 3
    assert Config.fromfile(top, {"width": 1}).model.twice == 2
    write("table.py", "heads = {}\nrows = ()\nmodel = dict(heads=heads, rows=rows)\n")
    nested = write("nested.py", "_base_ = 'table.py'\n_options_ = dict(heads=dict(a=dict(dim=3)), rows=(dict(b=-1), {'c': [dict(d=None)]}))\n")
    assert Config.fromfile(nested).model.to_dict() == dict(heads={"a": {"dim": 3}}, rows=({"b": -1}, {"c": [{"d": None}]}))
    with pytest.raises(KeyError, match="_options_ names 'widht', no helper variable of its bases; did you mean 'width'"):
        Config.fromfile(write("wrong.py", "_base_ = 'base.py'\n_options_ = dict(widht=1)\n"))
    with pytest.raises(ValueError, match="line 2: _options_ must be a dict of literals"):
        Config.fromfile(write("code.py", "_base_ = 'base.py'\n_options_ = dict(width=open('x'))\n"))
    with pytest.raises(ValueError, match="line 2: _options_ must be a dict of literals"):
        Config.fromfile(write("code.py", "_base_ = 'base.py'\n_options_ = dict(width=dict(a=dict(b=open('x'))))\n"))
