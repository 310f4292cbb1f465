"""`tinyft bench --backend gpu` on the stand-in: what it finds and writes. No test of speed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from tinyft.bench import gpu as bench_gpu
from tinyft.bench.cases import Case
from tinyft.cli import bench as command
from tinyft.cli.main import main
from tinyft.testing import contract
from tinyft.testing.contract import ContractError

pytestmark = pytest.mark.slow


TINY = Case("cifar_resnet20", 2, 8)


def test_every_kernel_is_within_the_bounds(gpu):
    """2e-6 of the largest answer times sqrt(K / 64 + 1) in fp32, 2e-3 in TF32."""
    for name in ("fp32", "tf32"):
        found = bench_gpu.errors("gpu", name)
        print(f"\n{name}: largest error (of what is allowed)")
        for kernel, worst in found.items():
            print(f"  {kernel:32} {worst['error']:.1e} ({worst['of_allowed']:.2f})")
            assert worst["of_allowed"] <= 1, kernel
        convolutions = {"conv2d", "conv2d_input_grad", "conv2d_weight_grad"}
        assert set(found) >= convolutions
        assert (set(found) == convolutions) == (name == "tf32")
        assert gpu.precision == "fp32"


def test_the_contract_is_counted(gpu, monkeypatch):
    def check_case(case, device):
        if case.subject == "relu":
            raise ContractError("wrong")

    monkeypatch.setattr(contract, "check_case", check_case)
    found = bench_gpu.contract("gpu")
    assert found["cases"] > 450
    assert found["cases"] - found["passed"] == len(found["failures"]) > 0


def test_the_convolutions_of_a_network():
    found = bench_gpu.convolutions(Case("resnet18", 1, 32))
    assert sum(found.values()) == 20 and len(found) == 11
    assert found[(8, 8, 64), (64, 64, 3, 3), 1, 1] == 4
    assert found[(32, 32, 3), (64, 3, 7, 7), 2, 3] == 1


def test_the_file_holds_everything(gpu, monkeypatch, tmp_path, capsys):
    for module in (bench_gpu, contract):
        monkeypatch.setattr(module, "KERNEL_CASES", contract.KERNEL_CASES[:4])
    monkeypatch.setattr(contract, "OP_CASES", [])
    monkeypatch.setattr(contract, "REFUSALS", [])
    monkeypatch.setattr(bench_gpu, "WARM_UPS", 0)
    path = tmp_path / "found.json"
    arguments = ["bench", "--backend", "gpu", "--alone", "--rounds", "1", "--out", str(path)]
    case = ["--arch", TINY.arch, "--batch-size", "2", "--size", "8"]
    assert main([*arguments, *case]) == 0
    out = capsys.readouterr().out
    assert "contract: 4 of 4 cases passed" in out and "fp32: the largest error is 0." in out
    found = json.loads(path.read_text())
    assert found["gpu"].startswith("gpu:0 (stand-in")
    assert found["contract"]["passed"] == 4
    (measured,) = found["cases"]
    assert measured["case"] == str(TINY)
    assert len(measured["layers"]) == len(bench_gpu.convolutions(TINY))
    assert set(measured["milliseconds"]) == {"everything", "frozen"}
    assert all(t > 0 for times in measured["milliseconds"].values() for t in times.values())
    assert measured["peak_bytes"]["tinyft"] > 0
    assert main([*arguments, "--memory"]) == 2
    assert main(["bench", "--out", "x"]) == 2


def test_without_a_gpu_the_command_says_why(capsys, monkeypatch):
    from tinyft import backends
    from tinyft.errors import DeviceError

    def fails(name):
        raise DeviceError("the GPU backend needs CuPy: pip install ...")

    monkeypatch.setattr(backends, "get", fails)
    monkeypatch.setattr(backends.registry, "get", fails)
    assert main(["bench", "--backend", "gpu"]) == 2
    assert "the GPU backend needs CuPy" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["bench", "--backend", "cuda"])
    assert "expected auto, cpu, cpu:bf16, reference, gpu or gpu:1" in capsys.readouterr().err
    assert command.FEWEST_ROUNDS


def test_pytorchs_sides_compute_what_ours_do():
    pytest.importorskip("torch")
    from tinyft.bench import pytorch as bench_torch
    from tinyft.bench.cases import our_side

    for frozen in (False, True):
        ours = float(our_side(TINY, "training", frozen=frozen)())
        for _, step, wait in bench_torch.device_sides(TINY, frozen, device="cpu"):
            assert float(step()) == pytest.approx(ours, rel=1e-2)
            wait()
    sides = bench_torch.layer_sides(2, (8, 8, 4), (6, 4, 3, 3), 2, 1, device="cpu")
    for passes, _ in sides.values():
        forward, input_grad, weight_grad = (work() for work in passes)
        assert forward.shape == (2, 6, 4, 4)
        assert input_grad[0].shape == (2, 4, 8, 8) and input_grad[1] is None
        assert weight_grad[1].shape == (6, 4, 3, 3) and weight_grad[0] is None
    assert np.isfinite(forward.numpy()).all()
