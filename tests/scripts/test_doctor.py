"""The doctor: what it says of machines that this one is not, and of installations that are broken."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from saccade.run import doctor, doctor_machine
from saccade.run.doctor_checks import Check
from saccade.run.doctor_machine import Gpu

SCRIPT = Path(__file__).parents[2] / "scripts" / "doctor.py"
V100 = Gpu("Tesla V100-SXM2-32GB", (7, 0), 32768, "535.104.05")
H100 = Gpu("NVIDIA H100", (9, 0), 81559, "580.65.06")
OLD_BUILD = ["sm_70", "sm_75", "sm_80", "sm_86", "sm_90"]
NEW_BUILD = ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "compute_120"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """No keys, weights or data but those of the test."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "NETRC", "SACCADE_WEIGHTS", "SACCADE_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path


def by_name(checks):
    return {check.name: check for check in checks}


def run(home, *arguments):
    return doctor.main(["--data-dir", str(home / "data"), "--runs", str(home / "runs"), *arguments])


def test_a_healthy_machine_is_told_what_is_optional(home, capsys):
    assert run(home, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is True
    checks = {check["name"]: check for check in told["checks"]}
    for name in ("python", "torch", "torchvision", "packages", "lightning", "sdpa", "conf"):
        assert checks[name]["state"] == "OK", checks[name]
    assert torch.__version__ in checks["torch"]["found"]
    assert checks["weights vgg19"]["state"] == "MISSING"
    assert "fetch_weights.py vgg19" in checks["weights vgg19"]["mend"]
    assert checks["data deepfashion"]["state"] == "MISSING"
    assert "stand-in" in checks["data deepfashion"]["found"]
    assert "offline" in checks["wandb"]["found"]


def test_plain_lines_where_there_is_no_terminal(home, capsys):
    assert run(home) == 0
    text = capsys.readouterr().out
    assert "OK      python" in text
    assert "-> python scripts/fetch_weights.py vgg19" in text
    assert "\x1b" not in text
    assert text.rstrip().splitlines()[-1].startswith("Saccade runs here.")


def test_a_table_on_a_terminal(home, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    doctor.show([Check("weights [x]", "WARN", "found", "mend it")])
    text = capsys.readouterr().out
    assert "weights [x]" in text
    assert "how to mend it" in text


def test_a_key_for_wandb_is_seen_but_not_shown(home, capsys, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "not-to-be-printed")
    assert doctor.wandb_check().found == "a key is there: runs are logged online"
    run(home)
    assert "not-to-be-printed" not in capsys.readouterr().out


def test_a_broken_package_is_the_only_reason_to_fail(home, capsys, monkeypatch):
    real = doctor.importlib.import_module

    def fail(name):
        if name == "cv2":
            raise ImportError("libGL.so.1: cannot open shared object file\nmore")
        return real(name)

    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    assert run(home) == 1
    text = capsys.readouterr().out
    assert "BROKEN  opencv" in text
    assert "libGL.so.1" in text
    assert text.rstrip().endswith("Mend these first.")


def test_packages_out_of_range_or_absent(monkeypatch):
    wanted = ["numpy>=99", "torch>=2.4", "surely-not-installed>=1", "pytest>=8; extra == 'dev'"]
    monkeypatch.setattr(doctor.importlib.metadata, "requires", lambda name: wanted)
    (check,) = doctor.package_checks()
    assert check.state == "BROKEN"
    assert "surely-not-installed" in check.found
    wanted.remove("surely-not-installed>=1")
    (check,) = doctor.package_checks()
    assert check.state == "WARN"
    assert "numpy" in check.found
    assert "torch" not in check.found


def test_half_a_data_set_is_named(home):
    root = home / "data" / "deepfashion"
    (root / "train").mkdir(parents=True)
    check = doctor.data_check(root)
    assert check.state == "WARN"
    assert "Missing" in check.found


def test_a_damaged_weight_file_is_named(home):
    (home / "vgg19-dcbb9e9d.pth").write_bytes(b"half a download")
    check = by_name(doctor.weight_checks(str(home)))["weights vgg19"]
    assert check.state == "WARN"
    assert "vgg19-dcbb9e9d.pth" in check.found


def test_the_verdict_names_what_to_look_at():
    assert "Look at: disk." in doctor.verdict([Check("disk", "WARN", "")])
    assert doctor.verdict([Check("torch", "BROKEN", "")]).startswith("Broken: torch")


# ---------------------------------------------------------------------- machines that this one is not


def gpu(gpus, **options):
    settings = {"cuda": "12.8", "usable": True, "architectures": OLD_BUILD}
    (check,) = doctor_machine.gpu_checks(gpus, **{**settings, **options})
    return check


def test_a_v100_under_a_build_without_sm_70_is_sent_to_the_legacy_set():
    check = gpu([V100], cuda="13.2", architectures=NEW_BUILD)
    assert check.state == "WARN"
    assert "no code for sm_70" in check.found
    assert "constraints/legacy-gpu.txt" in check.mend
    assert gpu([V100]).state == "OK"


def test_a_gpu_that_torch_cannot_use_gets_the_right_set():
    assert gpu([H100], cuda=None, usable=False).mend == "make clean setup TORCH=cuda"
    assert gpu([V100], cuda=None, usable=False).mend == "make clean setup TORCH=legacy-gpu"
    assert "driver too old" in gpu([H100], usable=False).found
    assert gpu([]).state == "MISSING"


@pytest.mark.parametrize(
    ("capability", "architectures", "runs"),
    [
        ((8, 9), ["sm_80", "sm_86"], True),
        ((8, 0), ["sm_86"], False),
        ((7, 0), NEW_BUILD, False),
        ((12, 1), NEW_BUILD, True),
        ((10, 0), ["sm_90a", "sm_100"], True),
        ((10, 0), ["sm_90"], False),
        ((9, 0), [], False),
    ],
)
def test_which_builds_run_on_which_gpu(capability, architectures, runs):
    assert doctor_machine.runs_on(capability, architectures) is runs


def test_the_suggested_set_is_that_of_pick_torch():
    assert doctor_machine.suggested_set([]) == "cpu"
    assert doctor_machine.suggested_set([H100]) == "cuda"
    assert doctor_machine.suggested_set([H100, V100]) == "legacy-gpu"
    assert doctor_machine.suggested_set([Gpu("A100", (8, 0), 40960, "535.1")]) == "legacy-gpu"


def test_precision_follows_the_weakest_gpu():
    assert "bf16" in doctor_machine.precision_check([H100]).found
    assert doctor_machine.precision_check([H100, V100]).found.startswith("numerics=fp16")
    assert "fp32" in doctor_machine.precision_check([Gpu("P100", (6, 0), 16384, "535")]).found
    assert "CPU" in doctor_machine.precision_check([]).found


@pytest.mark.parametrize(
    ("gpus", "version", "state", "words"),
    [
        ([], None, "OK", "not needed"),
        ([H100], None, "MISSING", "plain PyTorch"),
        ([V100], "3.2.0", "WARN", "sm_70"),
        ([V100], "3.6.0", "OK", "without tensor cores"),
        ([V100], "3.1.0", "OK", "3.1.0"),
        ([H100], "3.3.1", "OK", "3.3.1"),
    ],
)
def test_triton(gpus, version, state, words):
    check = doctor_machine.triton_check(gpus, version)
    assert check.state == state
    assert words in check.found


def test_nvidia_smi_lines():
    assert doctor_machine.parse_gpu("Tesla V100-SXM2-32GB, 7.0, 32768, 535.104.05") == V100
    assert doctor_machine.parse_gpu("Failed to initialize NVML") is None
    assert doctor_machine.parse_gpu("Old, [N/A], 1, 2") is None


def test_versions_compare_as_numbers():
    assert doctor_machine.version_of("2.13.0+cpu") == (2, 13, 0) > doctor_machine.version_of("2.4.1")


def test_processors(monkeypatch):
    monkeypatch.setattr(doctor_machine.os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    assert "OMP_NUM_THREADS=1" in doctor_machine.cpu_check().found
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    assert doctor_machine.cpu_check().state == "WARN"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    assert doctor_machine.cpu_check().state == "OK"


def test_room_and_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor_machine, "memory_bytes", lambda: 3 * 2**30)
    assert doctor_machine.memory_check().state == "WARN"
    assert doctor_machine.disk_check("disk", tmp_path / "a" / "b", least_gib=0.0).state == "OK"
    assert doctor_machine.disk_check("disk", tmp_path, least_gib=1e9).state == "WARN"
    monkeypatch.setattr(doctor_machine.os, "access", lambda *_: False)
    assert "not writable" in doctor_machine.disk_check("disk", tmp_path).found
    assert not (tmp_path / "a").exists()


def test_the_script_says_what_is_broken_if_the_package_does_not_import(tmp_path):
    (tmp_path / "saccade").mkdir()
    (tmp_path / "saccade" / "__init__.py").write_text("import nowhere_to_be_found\n")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "BROKEN  nowhere_to_be_found" in done.stdout
    assert "make clean setup" in done.stdout
