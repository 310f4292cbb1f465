"""What a notebook shows: well-formed HTML with the numbers that `print` says."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest

import tinyft as ft
from tests.finetune.conftest import small_learner
from tinyft import display
from tinyft.inspection.report import notebook


class Text(HTMLParser):
    """The text, and whether every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.text, self.open = "", []

    def handle_starttag(self, tag, attributes):
        if tag not in ("br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + "\n"


def shown(value):
    """What a notebook's reader reads."""
    parser = Text()
    parser.feed(value._repr_html_())
    assert parser.open == []
    return parser.text


@pytest.fixture(scope="module")
def trained():
    learner, ledger = small_learner(), ft.Ledger()
    learner.fine_tune(1, observers=[ledger])
    return learner, ledger


def test_a_tensor_says_what_it_is_and_how_it_was_made():
    x = ft.Tensor([[1.0, 2.0], [3.0, 6.0]], requires_grad=True)
    y = x * x
    assert "(2, 2) float32; made by mul; 1 to 36, mean 12.5" in shown(y)
    y.backward(np.ones((2, 2), np.float32))
    text = shown(x)
    assert "a leaf that requires a gradient" in text and "gradient of norm 14.14" in text
    assert "3." in text
    assert "(0, 3)" in shown(ft.Tensor(np.zeros((0, 3), np.float32)))
    assert "int64" in shown(ft.Tensor.wrap(np.arange(3)))


def test_print_says_of_a_tensor_what_a_notebook_shows():
    layer = ft.nn.Linear(3, 2)
    layer.name = "fc"
    y = layer(ft.Tensor(np.ones((2, 3), np.float32)))
    head, *values = str(y).splitlines()
    assert re.fullmatch(
        r"Tensor \(2, 2\) float32; made by linear in fc; \S+ to \S+, mean \S+", head
    )
    assert "\n".join(values) == str(y.data)
    y.backward(np.ones((2, 2), np.float32))
    for tensor in (y, layer.weight):
        assert str(tensor).splitlines()[0] in shown(tensor)
    assert "gradient of norm 4.899" in str(layer.weight)  # six entries of 2
    assert str(ft.ops.sum(y)).startswith("Tensor () float32; made by sum: ")


def test_a_large_tensor_is_one_line_and_a_small_one_at_a_prompt_its_values():
    pictures = ft.Tensor(np.zeros((8, 16, 16, 3), np.float32))
    facts = "Tensor (8, 16, 16, 3) float32; 0 to 0, mean 0"
    assert str(pictures) == facts and repr(pictures) == f"<{facts}>"
    weight = ft.Tensor(np.ones((8, 3, 3, 3), np.float32))  # NumPy would write 80 lines
    assert len(str(weight).splitlines()) == len(repr(weight).splitlines()) == 1
    assert repr(ft.Tensor([1.0])) == "Tensor([1.])"
    assert repr(ft.Tensor([1.0], requires_grad=True) * 2) == "Tensor([2.], made by mul)"


def test_one_nan_does_not_hide_the_range_of_the_others():
    x = ft.Tensor([1.0, np.nan, 3.0, np.inf])
    assert "1 to 3, mean 2; 2 of 4 are NaN or infinite" in str(x)
    assert "float32; 2 of 2 are NaN or infinite" in str(ft.Tensor([np.nan, np.nan]))


@pytest.mark.slow
def test_a_network_is_its_summary(trained):
    model = trained[0].model
    text = shown(model)
    assert "layer3.2.conv2" in text and "36,864" in text
    assert model.summary().total in text
    assert shown(model.summary()).count("head.linear2") == 1


def test_a_plan_has_its_text_and_its_curves(trained):
    plan = trained[0].plan(2)
    html = plan._repr_html_()
    assert str(plan).splitlines()[-1][:40] in shown(plan)
    assert html.count("<svg") == 2 and "layer2+layer3" in html
    names = [
        trained[0].classes[i]
        for i in next(plan.data.train_batches(2, plan.subject.preprocess)).labels
    ]
    assert re.findall(r"<figcaption[^>]*>(\w+)<", html.split("The first batch")[1]) == names


def test_a_plans_curves_count_as_its_text_does(monkeypatch, trained):
    def first_and_borders(title, lines, borders, **options):
        return f"{lines[0].x[0]} {borders}"

    monkeypatch.setattr(notebook, "line_chart", first_and_borders)
    shown_twice = "6 [(6.0, 'head alone'), (9.0, 'everything')]"
    assert trained[0].plan(1)._repr_html_().count(shown_twice) == 2


def test_a_step_has_its_groups(trained):
    record = trained[0].history[-1]
    text = shown(record)
    assert f"step 5, epoch 2, everything: loss {record.loss:.4f}" in text
    assert f"{record.groups[2].update_norm:.2e}" in text
    assert "validation: accuracy" in text and "tensors bit-identical" in text
    for line in record.lines():
        assert line in str(record)
    first = trained[0].history[0]
    assert [row[1] for row in first.rows()] == ["frozen", "frozen", "trains"]
    assert f"{first.groups[2].lr:.2e}" in str(first)


def test_a_step_that_was_not_measured_has_dashes():
    learner = small_learner()
    record = next(learner.steps(learner.plan(1)))
    assert record.rows()[0][-3:] == ["-", "-", "-"]
    assert str(record).splitlines()[-1].split()[-1] == "-"


def test_a_ledger_shows_what_it_holds(trained):
    ledger = trained[1]
    assert "everything, 3 to 5" in shown(ledger) and "everything, 3 to 5" in str(ledger)
    assert "no step was made" in shown(ft.Ledger()) and "no step was made" in str(ft.Ledger())


def test_what_has_no_drawing_is_its_text():
    class Odd(display.Displayed):
        def __str__(self):
            return "a < b"

    assert Odd()._repr_html_() == "<pre>a &lt; b</pre>"


@pytest.mark.slow
def test_showing_needs_no_import_by_the_user_and_importing_draws_nothing():
    code = (
        "import sys, tinyft as ft\n"
        "x = ft.Tensor([1.0])\n"
        "before = [m for m in sys.modules if m.startswith('tinyft.inspection')]\n"
        "print(before, 'float32' in x._repr_html_())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "[] True", done.stderr


def test_the_engine_does_not_draw():
    """A Tensor gains no dictionary, and the engine's files no HTML."""
    assert not hasattr(ft.Tensor([1.0]), "__dict__")


def test_data_learner_rates_and_predictions_show_themselves(trained, tmp_path):
    learner, _ = trained
    data = shown(learner.data)
    assert "The first batch, as the network gets it" in data and learner.data.classes[0] in data
    assert "lr now" in shown(learner) and "head" in shown(learner.describe())
    rates = shown(small_learner().lr_find(num_it=12))
    assert "log10 of the rate" in rates and "valley" in rates
    pixels = np.zeros((40, 40, 3), np.uint8)
    said = learner.predict(pixels)
    assert f"{said.label}, {100 * said.probability:.1f} %" in shown(said)
    report = ft.gradcheck(lambda x: x * x, [np.ones(2)])
    assert "passed" in shown(report)
