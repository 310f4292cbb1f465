"""Each exercise can be solved, says what is missing or wrong, and never writes over a file."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import tinyft as ft
from tinyft.bundled import bundled
from tinyft.learn.exercises import exercises

ALL = exercises(bundled("exercises"))

# What a reader writes: the lines with `...`, in order.
SOLUTIONS = {
    "unbroadcast": [
        "    return ...  # an array of that shape",
        "    front = gradient.ndim - len(shape)\n"
        "    ones = [front + i for i, n in enumerate(shape) if n == 1]\n"
        "    return gradient.sum((*range(front), *ones), keepdims=True).reshape(shape)",
    ],
    "relu": ["return ...", "return dout * (x > 0)"],
    "conv_dweight": [
        "    ...  # the same two loops",
        "    for r in range(R):\n"
        "        for s in range(S):\n"
        "            met = np.s_[:, r : r + P * stride : stride, s : s + Q * stride : stride]\n"
        "            dweight[:, :, r, s] = np.einsum('npqf,npqc->fc', dout, padded[met])",
    ],
    "conv_dx": [
        "    ...  # the same two loops, which fill dpadded",
        "    for r in range(R):\n"
        "        for s in range(S):\n"
        "            met = np.s_[:, r : r + P * stride : stride, s : s + Q * stride : stride]\n"
        "            dpadded[met] += dout @ weight[:, :, r, s]\n",
        "return ...  # and what of it is dx?",
        "return dpadded[:, padding : padding + x.shape[1], padding : padding + x.shape[2]]",
    ],
    "batch_norm_steps": [
        "dscaled = ...", "dscaled = dout",
        "db = ...", "db = dout.sum(0)",
        "dnormal = ...", "dnormal = dscaled * w",
        "dw = ...", "dw = (dscaled * normal).sum(0)",
        "dapart_7 = ...", "dapart_7 = dnormal * inverse",
        "dinverse = ...", "dinverse = (dnormal * apart).sum(0)",
        "dstd = ...", "dstd = -dinverse / std**2",
        "dvariance = ...", "dvariance = dstd / (2 * std)",
        "dsquare = ...", "dsquare = dvariance / len(x)",
        "dapart_3 = ...", "dapart_3 = dsquare * 2 * apart",
        "dapart = ...", "dapart = dapart_3 + dapart_7",
        "dmean = ...", "dmean = -dapart.sum(0)",
        "dx = ...", "dx = dapart + dmean / len(x)",
    ],
    "batch_norm": ["dx = ...", "dx = w * inverse * (dout - (db + normal * dw) / len(dout))"],
    "cross_entropy": [
        "probabilities = ...",
        "shifted = np.exp(logits - logits.max(1, keepdims=True))\n"
        "    probabilities = shifted / shifted.sum(1, keepdims=True)",
        "dlogits = ...",
        "dlogits = (probabilities - np.eye(logits.shape[1])[labels]) / len(labels)",
    ],
    "adam": [
        "average = ...", "average = momentum * average + (1 - momentum) * gradient",
        "average_square = ...",
        "average_square = square_momentum * average_square + (1 - square_momentum) * gradient**2",
        "parameter = ...",
        "root = np.sqrt(average_square / (1 - square_momentum**step))\n"
        "    parameter = parameter * (1 - lr * weight_decay)\n"
        "    parameter = parameter - lr * average / (1 - momentum**step) / (root + eps)",
    ],
    "one_cycle": [
        "    return ...", "    return a + (b - a) * (1 - math.cos(math.pi * done)) / 2",
        "    return ...",
        "    if position < warm_up:\n"
        "        return cosine(values[0], values[1], position / warm_up)\n"
        "    return cosine(values[1], values[2], (position - warm_up) / (1 - warm_up))",
    ],
    "group_rates": [
        "return ...",
        "return [high] if n == 1 else [low * (high / low) ** (i / (n - 1)) for i in range(n)]",
        "return ...", "return group_rates(base_lr / 200, base_lr / 2, n)",
    ],
    "freezing": [
        "        ...",
        "        passes = any(i in answers and answers[i][0] for i in inputs)\n"
        "        answers[name] = (trains or passes, trains, passes)",
    ],
    "break_training": ['{"A": "?", "B": "?"}', '{"A": "b", "B": "C"}'],
    "break_batch_norm": ['{"A": "?", "B": "?"}', '{"A": "c", "B": "b"}'],
    "break_freezing": ['{"A": "?", "B": "?"}', '{"A": "c", "B": "b"}'],
}  # fmt: skip


def written(name, folder, replace=()):
    """A reader's file, with their lines in the places of what was missing."""
    text = ALL[name].template
    for old, new in zip(replace[::2], replace[1::2], strict=True):
        assert old in text, old
        text = text.replace(old, new, 1)
    (folder / f"{name}.py").write_text(text)
    return folder / f"{name}.py"


def test_there_is_a_solution_for_each_and_pages_name_those_that_exist():
    assert [*ALL] == [*SOLUTIONS]
    root = Path(__file__).parents[2]
    for page in [*root.glob("*.md"), *(root / "docs").glob("*.md")]:
        named = re.findall(r"exercises (?:start|check|hint) ([a-z_]+)`", page.read_text())
        assert {*named} <= {*ALL}, page


def test_what_hints_point_to_is_there():
    root = Path(__file__).parents[2]
    glossary, derivations = (
        (root / "docs" / f"{page}.md").read_text() for page in ("glossary", "derivations")
    )
    pointed = 0
    for text in (" ".join(exercise.hints) for exercise in ALL.values()):
        terms = re.findall(r"`([a-z][a-z ]+)`", text.partition("docs/glossary.md")[2])
        assert all(f"### {term.capitalize()}\n" in glossary for term in terms), terms
        sections = re.findall(r"docs/derivations\.md, (\d)", text)
        assert all(f"\n## {number}. " in derivations for number in sections), sections
        for file, name in re.findall(r"(tinyft/[\w/]+\.py)(?:: (\w+))?", text):
            assert f"def {name}" in (root / file).read_text(), (file, name)
            pointed += 1
        pointed += len(terms) + len(sections)
    assert pointed > 15


@pytest.mark.parametrize("name", ALL)
def test_an_exercise_asks_for_something_and_can_be_solved(name, tmp_path):
    exercise = ALL[name]
    empty = exercise.judge(written(name, tmp_path))
    assert not empty.solved and empty.lines
    whole = exercise.judge(written(name, tmp_path, SOLUTIONS[name]))
    assert whole.solved, whole.lines
    assert not any(NOT_SHOWN in exercise.template for NOT_SHOWN in ("HINTS", "def check"))
    assert exercise.title.endswith(" minutes)") and len(exercise.hints) >= 2


MISTAKES = {  # an exercise, the line that is right, a wrong one, and what is said of it
    "a sign": ("batch_norm_steps", "-dinverse / std", "dinverse / std", "dstd: wrong, yours ["),
    "a factor": ("batch_norm_steps", "-dinverse / std**2", "dinverse / std", "1 / std, or a mul"),
    "all answers": ("freezing", "(trains or passes,", "(trains,", "yours [False False  True]"),
    "its cause": ("batch_norm_steps", "-dinverse / std", "dinverse / std", "the sign is wrong"),
    "a count": ("cross_entropy", " / len(labels)", "", "5 times too large"),
    "a mask": ("relu", "dout * (x > 0)", "dout", "a mask is missing"),
    "a term": ("batch_norm", "(db + normal * dw) / len(dout)", "dout.mean(0)", "those through the"),
    "a sum": ("conv_dx", "dpadded[met] +=", "dpadded[met] =", "right (.) and wrong (x)"),
    "a shape": ("unbroadcast", ".reshape(shape)", "", "another shape, yours has (1, 3), expected"),
    "an error": ("adam", "momentum * average", "momentun * average", "NameError: name 'momentun'"),
    "its line": ("relu", "(x > 0)", "(z > 0)", "relu.py, line 19: NameError"),
    "an assertion": ("relu", "return dout", "assert not len(x)\n    return dout",
                     "relu.py, line 19: AssertionError"),
    "syntax": ("relu", "(x > 0)", "(x > 0", "relu.py, line 19: SyntaxError"),
    "a guess": ("break_training", '"A": "b"', '"A": "a"', "A: a is not what happens"),
    "a name": ("relu", "def backward", "def backwards", "relu.py defines no backward"),
    "sums for means": ("batch_norm", " / len(dout))", ")", "mean and the variance"),
    "in place": ("adam", "average = momentum * average + (1 - momentum) * gradient",
                 "average *= momentum; average += (1 - momentum) * gradient", "read-only"),
    "one branch": ("freezing", "any(i in", "all(i in",
                   "one branch: add(conv1, conv2), trains None (recorded, weight, passes): wrong"),
    "a share": ("one_cycle", "position / warm_up)", "position / 0.25)", "warm_up 0.5: wrong"),
    "one array": ("cross_entropy", "dlogits = (probabilities - np.eye(logits.shape[1])[labels]) /",
                  "dlogits = probabilities\n    dlogits -= np.eye(logits.shape[1])[labels] + 0 *",
                  "both results are one array"),
    "a return": ("group_rates", "return group_rates", "group_rates", "not written yet: fine_tune"),
}  # fmt: skip


@pytest.mark.parametrize(("name", "right", "wrong", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_in_the_words_of_the_file(name, right, wrong, said, tmp_path):
    path = written(name, tmp_path, SOLUTIONS[name])
    text = path.read_text()
    assert right in text
    path.write_text(text.replace(right, wrong))
    judgement = ALL[name].judge(path)
    assert not judgement.solved
    assert said in "\n".join(judgement.lines)


def test_what_builds_on_a_missing_line_is_no_error(tmp_path):
    steps = SOLUTIONS["batch_norm_steps"]
    without = [*steps[:6], *steps[8:]]  # dw is missing, on which nothing builds
    lines = ALL["batch_norm_steps"].judge(written("batch_norm_steps", tmp_path, without)).lines
    assert lines[-1] == "not written yet: dw" and lines[0] == "dscaled: exact"
    builds = [*steps[:4], *steps[6:]]  # dnormal is missing
    lines = ALL["batch_norm_steps"].judge(written("batch_norm_steps", tmp_path, builds)).lines
    assert "a line that it builds on still is ..." in lines[-1]
    for name, said in {
        "freezing": "fastai; head alone; first layer alone; nothing trains and 1 more",
        "conv_dweight": "dweight, (1, 1), stride 1, padding 0; "
        "dweight, (3, 3), stride 1, padding 1; dweight, (3, 2), stride 2, padding 1",
    }.items():
        assert ALL[name].judge(written(name, tmp_path)).lines == [f"not written yet: {said}"]


# ------------------------------------------------------------------------------------ break it


def without(name, letter, folder):
    """What the script prints without one of its lines."""
    lines = ALL[name].template.splitlines(keepends=True)
    kept = [line for line in lines if not line.rstrip().endswith(f"# [{letter}]")]
    assert len(kept) == len(lines) - bool(letter)
    (folder / "broken.py").write_text("".join(kept))
    done = subprocess.run(
        [sys.executable, "broken.py"], cwd=folder, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(Path(ft.__file__).parents[1]), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return done.stdout


@pytest.mark.slow
def test_what_follows_in_training_is_what_the_answers_say(tmp_path):
    def lengths(out):
        return [float(line.split()[-1]) for line in out.splitlines() if line.startswith("step")]

    def photos(out):
        return [line[29:] for line in out.splitlines() if line.startswith("the first")]

    whole, a, b = (without("break_training", letter, tmp_path) for letter in ("", "A", "B"))
    assert max(lengths(a)[6:]) > 3 * max(lengths(whole)[6:]) and "nan" not in a
    same, differ = photos(whole), photos(b)
    assert same[0] == same[1] and differ[0] != differ[1]


@pytest.mark.slow
def test_what_follows_in_a_batch_norm_is_what_the_answers_say(tmp_path):
    whole, a, b = (without("break_batch_norm", letter, tmp_path) for letter in ("", "A", "B"))
    losses = [line for line in whole.splitlines() if line.startswith("step")]
    assert losses[0] != losses[-1]
    right = [
        int(out.partition("right in evaluation: ")[2].partition("%")[0]) for out in (whole, a, b)
    ]
    assert right[0] > 90 and right[1] > 90 and right[2] < 70
    assert "passed" in whole and "the mean and the variance of a normalisation" in a
    assert losses == [line for line in b.splitlines() if line.startswith("step")]
    assert "passed" in b


@pytest.mark.slow
def test_what_follows_of_freezing_is_what_the_answers_say(tmp_path):
    whole, a, b = (without("break_freezing", letter, tmp_path) for letter in ("", "A", "B"))
    moved = [
        re.findall(r"^(\d+) of 70 arrays moved, such as (.*)", out, re.M) for out in (whole, a, b)
    ]
    assert [[int(n) for n, _ in runs] for runs in moved] == [[10, 46], [58, 70], [10, 10]]
    # of a frozen body 24 scales and shifts and 24 running statistics, and no convolution
    assert "bn1.weight" in moved[1][0][1] and "conv" not in moved[1][0][1]
    assert "stem+layer1+layer2  frozen" in b and "frozen" not in whole.partition("Phase 1")[2][:400]


# ------------------------------------------------------------------------------------ the command


def test_the_command_starts_checks_and_hints(tmp_path, monkeypatch, capsys):
    from tinyft.cli.main import main

    monkeypatch.chdir(tmp_path)
    assert main(["exercises", "start", "relu"]) == 0
    assert main(["exercises", "start", "relu"]) == 2
    assert "relu.py is here already, and stays as it is" in capsys.readouterr().err
    assert main(["exercises", "check", "relu"]) == 1
    assert "not written yet: dx" in capsys.readouterr().out
    path = written("relu", tmp_path, SOLUTIONS["relu"])
    assert main(["exercises", "check", path.name]) == 0
    assert "relu: solved; next: tinyft exercises start conv_dweight" in capsys.readouterr().out
    assert main(["exercises", "list"]) == 0
    assert capsys.readouterr().out.count("(begun)") == 1
    assert main(["exercises", "hint", "relu"]) == 0
    assert "hint 1 of 2: x > 0 is" in (out := capsys.readouterr().out)
    assert "the next: tinyft exercises hint relu 2" in out
    assert main(["exercises", "hint", "relu", "3"]) == 2
    assert main(["exercises", "check", "reluu"]) == 2
    assert "did you mean relu?" in capsys.readouterr().err
    assert main(["exercises", "check", "adam"]) == 2
    assert "write it with tinyft exercises start adam" in capsys.readouterr().err
