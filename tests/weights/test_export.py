"""What leaves tinyft: other programs compute the same of it, and know what it is."""

import importlib.util
import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest

from tinyft import backends
from tinyft.bundled import bundled
from tinyft.data.picture import prepare
from tinyft.engine.tape import no_grad
from tinyft.engine.tensor import Tensor
from tinyft.errors import WeightsError
from tinyft.nn import build
from tinyft.nn.head import HEADS, attach, cut
from tinyft.nn.layers import BatchNorm
from tinyft.nn.resnet import ARCHITECTURES
from tinyft.weights import Preprocess, Weights, export_onnx, export_safetensors, load_weights
from tinyft.weights.model import network_of, trained_head
from tinyft.weights.onnx_file import OPSET, attribute, field

CLASSES = ["zèbre", "b", "c"]
PIXELS = np.random.default_rng(0).integers(0, 256, (3, 33, 33, 3)).astype(np.uint8)
QUICK = [("cifar_resnet20", "fastai"), ("resnet10s", "linear"), ("resnet10s", "fc")]
ALL = [(arch, head) for arch in ARCHITECTURES for head in ("fastai", "linear", "fc")]
EACH = [
    pytest.param(*case, marks=[] if case in QUICK else [pytest.mark.slow], id="-".join(case))
    for case in ALL
]


def trained(arch, head):
    """A network that has seen something: its batch norms are not at 1 and 0."""
    network = build(arch, len(CLASSES), seed=1)
    if head != "fc":
        attach(cut(network), HEADS[head](network.num_features, len(CLASSES)))
    rng = np.random.default_rng(0)
    for _, norm in network.named_modules():
        if isinstance(norm, BatchNorm):
            for array, low, high in (
                (norm.weight.data, 0.4, 0.8),
                (norm.bias.data, -0.1, 0.1),
                (norm.running_mean, -0.1, 0.1),
                (norm.running_var, 0.5, 2),
            ):
                array[...] = rng.uniform(low, high, array.shape)
    arrays = {n: np.ascontiguousarray(a) for n, a in network.state_dict().items()}
    preprocess = Preprocess(resize=36, crop=33, mean=(0.5, 0.25, 0.125), std=(0.2, 0.3, 0.4))
    return Weights(arch, arrays, CLASSES, preprocess, {"head": "linear" if head == "fc" else head})


def logits_of(weights, pixels):
    """What tinyft says of pictures (N, S, S, 3)."""
    mean, std = np.float32(weights.preprocess.mean), np.float32(weights.preprocess.std)
    x = backends.get("reference").images(pixels, mean, std, np.dtype(np.float32))
    with no_grad():
        return network_of(weights).eval()(Tensor(x)).data


def assert_same(found, expected):
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * max(1, abs(expected).max()))
    np.testing.assert_array_equal(found.argmax(1), expected.argmax(1))


def fifty(folder):
    """Pictures of a folder, from all of its classes."""
    files = sorted(folder.rglob("*.jpg"))
    return files[:: len(files) // 50][:50]


# ------------------------------------------------------------------------------------------- ONNX


def session_of(path):
    pytest.importorskip("onnx").checker.check_model(str(path), full_check=True)
    runtime = pytest.importorskip("onnxruntime")
    return runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(("arch", "head"), EACH)
def test_onnx_runtime_computes_the_same_of_any_number_of_pictures(arch, head, tmp_path):
    weights = trained(arch, head)
    export_onnx(weights, tmp_path / "a.onnx")
    session = session_of(tmp_path / "a.onnx")
    expected = logits_of(weights, PIXELS)
    for count in (3, 1):
        found, probabilities = session.run(None, {"pictures": PIXELS[:count]})
        assert_same(found, expected[:count])
        power = np.exp(found - found.max(1, keepdims=True))
        np.testing.assert_allclose(probabilities, power / power.sum(1, keepdims=True), atol=1e-6)


def test_onnx_runtime_knows_the_classes_and_how_to_prepare_a_picture(tmp_path):
    weights = trained("cifar_resnet20", "fastai")
    export_onnx(weights, tmp_path / "a.onnx")
    session = session_of(tmp_path / "a.onnx")
    assert session.get_inputs()[0].shape == ["N", 33, 33, 3]
    assert [output.shape for output in session.get_outputs()] == [["N", 3]] * 2
    found = session.get_modelmeta()
    assert found.producer_name == "tinyft" and "the shorter side resized" in found.description
    facts = found.custom_metadata_map
    assert (facts["arch"], facts["head"]) == ("cifar_resnet20", "fastai")
    assert json.loads(facts["classes"]) == CLASSES
    said = json.loads(facts["preprocess"])
    assert said["whole_square"] is False and Preprocess.from_dict(said) == weights.preprocess


@pytest.mark.slow
@pytest.mark.parametrize("source", ["resnet18_imagenet_pq.pth", "resnet10s-tinyimagenet.h5"])
@pytest.mark.parametrize("photos", ["flowers12", "animals8"])
def test_fifty_photos_in_onnx_runtime(shared, tmp_path, source, photos):
    weights, pixels = real(shared, source, photos)
    export_onnx(weights, tmp_path / "a.onnx")
    found, _ = session_of(tmp_path / "a.onnx").run(None, {"pictures": pixels})
    assert_same(found, logits_of(weights, pixels))


def real(shared, source, photos):
    """Published weights, and fifty photos as they see them."""
    mine = source.endswith(".h5")
    weights = load_weights(bundled(f"weights/{source}") if mine else shared / "data" / source)
    files = fifty(shared / "data" / photos)
    return weights, np.stack([prepare(file, weights.preprocess) for file in files])


@pytest.mark.parametrize("whole_square", [False, True])
def test_the_code_of_the_page_names_a_picture(tmp_path, monkeypatch, capsys, whole_square):
    pytest.importorskip("onnxruntime")
    from PIL import Image

    weights = trained("resnet10s", "fastai")
    preprocess = replace(weights.preprocess, whole_square=whole_square)
    export_onnx(replace(weights, preprocess=preprocess), tmp_path / "flowers.onnx")
    noise = np.random.default_rng(0).integers(0, 256, (40, 61, 3)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "rose.jpg", format="PNG")
    monkeypatch.chdir(tmp_path)
    page = bundled("weights/README.md").read_text()
    (code,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    names = {}
    exec(compile(code, "weights/README.md", "exec"), names)
    pixels = prepare(noise, preprocess)
    apart = abs(np.int64(names["picture"]) - pixels)
    assert apart.max() <= whole_square  # of what is sampled, halves are rounded another way
    best = CLASSES[logits_of(weights, pixels[None]).argmax()]
    assert capsys.readouterr().out.startswith(f"{best} ")


def fields(data):
    """The fields of a protocol buffer: (number, integer or bytes)."""

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    at, found = 0, []
    while at < len(data):
        key = number()
        value = number()
        if key & 7 == 2:
            value, at = data[at : at + value], at + value
        found.append((key >> 3, value))
    assert at == len(data)
    return found


def test_numbers_and_fields_of_a_protocol_buffer():
    # the examples of protobuf.dev/programming-guides/encoding
    assert field(1, 150).hex() == "089601"
    assert field(2, "testing").hex() == "120774657374696e67"
    assert fields(attribute("pads", [1, 300])) == [(1, b"pads"), (8, 1), (8, 300), (20, 7)]


def test_the_nodes_of_an_onnx_file(tmp_path):
    weights = trained("cifar_resnet20", "fastai")
    export_onnx(weights, tmp_path / "a.onnx")
    model = dict(fields((tmp_path / "a.onnx").read_bytes()))
    assert dict(fields(model[8])) == {1: b"", 2: OPSET}
    graph = fields(model[7])
    kinds = [dict(fields(value))[4].decode() for number, value in graph if number == 1]
    assert kinds[:4] == ["Transpose", "Cast", "Sub", "Div"]
    assert (kinds.count("Conv"), kinds.count("Add"), kinds.count("Gemm")) == (19, 9, 2)
    assert kinds.count("Slice") == kinds.count("Pad") == 2
    assert kinds[-2:] == ["Gemm", "Softmax"] and "BatchNormalization" not in kinds
    constants = [dict(fields(value)) for number, value in graph if number == 5]
    mean = np.frombuffer(constants[0][9], np.float32)
    np.testing.assert_array_equal(mean, [127.5, 63.75, 31.875])


@pytest.mark.parametrize(
    ("head", "message"), [("custom", "a Module of your own"), (None, "no classifier")]
)
def test_onnx_of_what_tinyft_cannot_know(weights, tmp_path, head, message):
    body = {n: a for n, a in weights.arrays.items() if not n.startswith("fc.")}
    own = {"head.scale": np.ones(3, np.float32)} if head else {}
    odd = replace(weights, arrays=body | own, metadata={"head": head})
    with pytest.raises(WeightsError, match=message):
        export_onnx(odd, tmp_path / "a.onnx")
    assert list(tmp_path.iterdir()) == []
    export_safetensors(odd, tmp_path / "a.safetensors")  # arrays can always be had
    assert trained_head(odd)[0] == (head or "")


# ---------------------------------------------------------------------------------------- PyTorch


@pytest.fixture(scope="module")
def loader():
    """The Python file that is written beside the weights."""
    for name in ("torch", "torchvision", "safetensors"):
        with warnings.catch_warnings(action="ignore"):
            pytest.importorskip(name)
    path = bundled("weights/load_in_pytorch.py")
    spec = importlib.util.spec_from_file_location("load_in_pytorch", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torch_logits(network, preprocess, pixels):
    import torch

    mean, std = np.float32(preprocess["mean"]), np.float32(preprocess["std"])
    x = torch.from_numpy((np.float32(pixels) / 255 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        return network(x).numpy()


@pytest.mark.parametrize(("arch", "head"), EACH)
def test_pytorch_loads_it_strictly_and_computes_the_same(arch, head, loader, tmp_path):
    weights = trained(arch, head)
    export_safetensors(weights, tmp_path / "a.safetensors")
    network, facts = loader.load(tmp_path / "a.safetensors")
    assert facts["arch"] == arch and facts["classes"] == CLASSES and not network.training
    assert Preprocess.from_dict(facts["preprocess"]) == weights.preprocess
    assert_same(torch_logits(network, facts["preprocess"], PIXELS), logits_of(weights, PIXELS))


def test_pytorch_loads_nothing_that_lacks_an_array(loader, tmp_path):
    weights = trained("cifar_resnet20", "fastai")
    arrays = {n: a for n, a in weights.arrays.items() if n != "layer2.0.bn1.weight"}
    export_safetensors(replace(weights, arrays=arrays), tmp_path / "a.safetensors")
    with pytest.raises(RuntimeError, match=r"Missing key.*layer2\.0\.bn1\.weight"):
        loader.load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("whole_square", [False, True])
def test_pytorch_prepares_pictures_as_tinyft_does(loader, whole_square):
    from PIL import Image

    said = replace(trained("resnet10s", "fc").preprocess, whole_square=whole_square)
    step = 0.51 if whole_square else 1e-3  # whose pixels are rounded to bytes here, and not there
    for height, width in ((40, 61), (61, 40), (36, 47), (36, 36)):  # odd margins, and none
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
        found = loader.prepare(Image.fromarray(pixels), vars(said)).numpy().transpose(1, 2, 0)
        shown = 255 * (found * said.std + said.mean)
        np.testing.assert_allclose(shown, prepare(pixels, said), atol=step)


@pytest.mark.slow
@pytest.mark.parametrize("source", ["resnet18_imagenet_pq.pth", "resnet10s-tinyimagenet.h5"])
@pytest.mark.parametrize("photos", ["flowers12", "animals8"])
def test_fifty_photos_in_pytorch(shared, loader, tmp_path, source, photos):
    weights, pixels = real(shared, source, photos)
    export_safetensors(weights, tmp_path / "a.safetensors")
    network, facts = loader.load(tmp_path / "a.safetensors")
    found = torch_logits(network, facts["preprocess"], pixels)
    expected = logits_of(weights, pixels)
    assert_same(found, expected)
    assert abs(found - expected).max() < 1e-4
