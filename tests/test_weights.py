"""Weight files: where they are looked for, how they are checked, what is said without network."""

import dataclasses
import hashlib
import importlib.util
import os
import pathlib
import threading

import pytest
import torch

from saccade import weights


@pytest.fixture
def home(monkeypatch, tmp_path):
    """An empty torch hub cache, no environment folder, and one known file of our own that can be had by file://."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("SACCADE_WEIGHTS", raising=False)
    monkeypatch.delenv("SACCADE_OFFLINE", raising=False)
    monkeypatch.setattr(weights, "_hosts_that_answer", {})
    published = tmp_path / "published"
    published.mkdir()
    torch.save({"layer": torch.arange(4.0)}, published / "raw")
    digest = hashlib.sha256((published / "raw").read_bytes()).hexdigest()
    file = published / f"tiny-{digest[:8]}.pth"
    (published / "raw").rename(file)
    entry = weights.WeightFile("tiny", file.name, file.as_uri(), 1, digest[:8], "a test file", aliases=("other.pth",))
    monkeypatch.setattr(weights, "KNOWN", {"tiny": entry})
    return tmp_path


def _published(home):
    return (home / "published" / weights.KNOWN["tiny"].file).read_bytes()


def _put(folder, content, name=None):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / (name or weights.KNOWN["tiny"].file)
    path.write_bytes(content)
    return path


def test_table_has_the_hash_in_every_name_and_address():
    for entry in weights.KNOWN.values():
        assert entry.sha256_prefix in entry.file
        assert entry.url.endswith("/" + entry.file)
        assert len(entry.sha256_prefix) == 8


def test_places_come_in_order_without_repeats(home, monkeypatch):
    hub = home / "home" / "hub" / "checkpoints"
    assert weights.places() == [hub]
    monkeypatch.setenv("SACCADE_WEIGHTS", str(home / "env"))
    assert weights.places(home / "mine") == [home / "mine", home / "env", hub]
    assert weights.places(home / "env") == [home / "env", hub]


@pytest.mark.parametrize("place", ["mine", "env", "home/hub/checkpoints"])
def test_finds_a_file_in_each_place(home, monkeypatch, place):
    monkeypatch.setenv("SACCADE_WEIGHTS", str(home / "env"))
    path = _put(home / place, _published(home))
    found = weights.find("tiny", home / "mine", download=False)
    assert found.path == path
    assert found.sha256 == hashlib.sha256(_published(home)).hexdigest()


def test_finds_the_same_bytes_under_another_published_name(home):
    path = _put(home / "mine", _published(home), "other.pth")
    assert weights.find("tiny", home / "mine", download=False).path == path


def test_a_damaged_file_is_passed_over_for_a_good_one(home, monkeypatch):
    monkeypatch.setenv("SACCADE_WEIGHTS", str(home / "env"))
    _put(home / "mine", _published(home)[:-1])
    good = _put(home / "env", _published(home))
    assert weights.find("tiny", home / "mine", download=False).path == good


def test_a_replaced_file_is_checked_again(home):
    path = _put(home / "mine", _published(home))
    assert weights.locate("tiny", home / "mine") is not None
    path.write_bytes(b"x" * len(_published(home)))
    os.utime(path, ns=(1, 1))
    assert weights.locate("tiny", home / "mine") is None


def test_offline_error_says_file_size_places_key_and_command(home):
    _put(home / "mine", b"damaged")
    with pytest.raises(weights.WeightsError) as caught:
        weights.find("tiny", home / "mine", download=False)
    text = str(caught.value)
    for part in (
        weights.KNOWN["tiny"].file,
        "1 MB",
        str(home / "mine"),
        str(home / "home" / "hub" / "checkpoints"),
        "runtime.weights_dir",
        "python scripts/fetch_weights.py tiny",
        "SHA-256",
        "downloads are switched off",
    ):
        assert part in text


def test_download_writes_into_the_first_place(home):
    found = weights.find("tiny", home / "mine")
    assert found.path == home / "mine" / weights.KNOWN["tiny"].file
    assert found.path.read_bytes() == _published(home)


def test_download_of_wrong_bytes_leaves_nothing(home, monkeypatch):
    entry = dataclasses.replace(weights.KNOWN["tiny"], sha256_prefix="00000000")
    monkeypatch.setitem(weights.KNOWN, "tiny", entry)
    with pytest.raises(weights.WeightsError, match="invalid hash value"):
        weights.find("tiny", home / "mine")
    assert list((home / "mine").iterdir()) == []


def test_environment_forbids_downloads(home, monkeypatch):
    monkeypatch.setenv("SACCADE_OFFLINE", "1")
    with pytest.raises(weights.WeightsError, match="SACCADE_OFFLINE"):
        weights.find("tiny", home / "mine")
    assert not (home / "mine").exists()


def test_a_host_that_never_answers_is_given_up(home, monkeypatch):
    release = threading.Event()
    asked = []

    def hangs(request, timeout):
        asked.append(request.full_url)
        release.wait()
        raise OSError

    monkeypatch.setattr(weights, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(weights.urllib.request, "urlopen", hangs)
    resolution = weights.resolve_mode("auto", ["tiny"], home / "mine")
    assert resolution.mode == "random"
    assert "does not answer" in resolution.notice
    weights.resolve_mode("auto", ["tiny"], home / "mine")
    assert len(asked) == 1, "one answer a host"
    release.set()


def test_modes(home):
    assert weights.resolve_mode("random", ["tiny"]).mode == "random"
    with pytest.raises(weights.WeightsError):
        weights.resolve_mode("pretrained", ["tiny"], download=False)
    lost = weights.resolve_mode("auto", ["tiny"], download=False)
    assert (lost.mode, lost.files) == ("random", ())
    assert "RANDOM FEATURES" in lost.notice
    assert "not comparable" in lost.notice
    _put(home / "mine", _published(home))
    had = weights.resolve_mode("auto", ["tiny"], home / "mine", download=False)
    assert (had.mode, had.notice) == ("pretrained", None)
    assert had.files[0].name == "tiny"


def test_wrong_words_list_the_valid_ones(home):
    with pytest.raises(ValueError, match="auto, pretrained, random"):
        weights.resolve_mode("maybe", ["tiny"])
    with pytest.raises(ValueError, match="known: tiny"):
        weights.find("large")
    with pytest.raises(ValueError, match="resolve_mode"):
        weights.check_mode("someone", "auto")


def test_loads_tensors_and_refuses_code(home, monkeypatch):
    _put(home / "mine", _published(home))
    state, found = weights.load_state_dict("tiny", home / "mine", download=False)
    assert torch.equal(state["layer"], torch.arange(4.0))
    assert found.name == "tiny"
    for content, match in (({"path": pathlib.Path("x")}, "plain tensors"), ([torch.ones(1)], "not a dict of tensors")):
        torch.save(content, home / "bad")
        raw = (home / "bad").read_bytes()
        entry = dataclasses.replace(weights.KNOWN["tiny"], sha256_prefix=hashlib.sha256(raw).hexdigest()[:8])
        monkeypatch.setitem(weights.KNOWN, "tiny", entry)
        _put(home / "mine", raw)
        with pytest.raises(weights.WeightsError, match=match):
            weights.load_state_dict("tiny", home / "mine", download=False)


def test_status_and_the_fetch_script(home, monkeypatch, capsys):
    script = pathlib.Path(__file__).parents[1] / "scripts" / "fetch_weights.py"
    spec = importlib.util.spec_from_file_location("fetch_weights", script)
    fetch = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fetch)
    assert weights.status(home / "mine")[0]["state"] == "missing"
    monkeypatch.setenv("SACCADE_OFFLINE", "1")
    assert fetch.main(["tiny", "--to", str(home / "mine")]) == 1
    assert "SACCADE_OFFLINE" in capsys.readouterr().err
    monkeypatch.delenv("SACCADE_OFFLINE")
    assert fetch.main(["--to", str(home / "mine")]) == 0
    assert fetch.main(["--list", "--to", str(home / "mine")]) == 0
    assert "found" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(SystemExit):
        fetch.main(["huge"])
