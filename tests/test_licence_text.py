"""The text of a network's licence, as its repository on the hub has it; a server on this machine is the hub."""

from __future__ import annotations

import gzip
import itertools
import json
from contextlib import contextmanager
from urllib.parse import quote

import pytest
import timm

from napari_sparseseg.errors import ModelError
from napari_sparseseg.learning import hub
from napari_sparseseg.learning.encoders import encoder_info
from napari_sparseseg.learning.hub import MOST_TEXT, stated_licence
from tests.helpers.hub_server import COMMIT, GATED, OTHER, Hub, at_hub

NAME = "pathology/tiny"
TIMM = "timm/test_resnet.r160_in1k"


@pytest.fixture
def ask(tmp_path, monkeypatch):
    """What is told of a repository with these files; its hub's address is HUB in that."""

    def _ask(files, name=NAME, revision="", **settings):
        with at_hub(Hub(name, files, **settings), tmp_path, monkeypatch) as there:
            found = stated_licence(name + revision)
        _ask.hub = there
        return found.name, found.text, found.note.replace(there.address, "HUB")

    return _ask


def test_the_text_is_told_without_what_a_terminal_or_window_would_obey(ask):
    content = b"\xef\xbb\xbf\nTissue \xc2\xa9\r\n\tFree <b>now</b>\x1b[31m\x07\xe2\x80\xae\xc2\xa0end\x0c\r\xff\n\n"
    name, text, note = ask({"README.md": b"", "LICENSE": content}, card={"license": "mit\x1b[2J\n"})
    assert name == "mit\ufffd[2J, see its page"
    assert text == "Tissue ©\n    Free <b>now</b>\ufffd[31m\ufffd\ufffd end \n\ufffd"
    assert note == "Licence text: LICENSE, HUB/pathology/tiny/blob/main/LICENSE"


@pytest.mark.parametrize(
    ("files", "link", "chosen"),
    [
        (["LICENSE.pdf", "LICENSE.md", "LICENSE"], None, "LICENSE (there is also LICENSE.md, LICENSE.pdf)"),
        (["LICENSE.txt", "LICENSE.md"], None, "LICENSE.md (there is also LICENSE.txt)"),
        (["licence.TXT", "docs/LICENSE", "licensed.txt", "model.safetensors"], None, "licence.TXT"),
        (["COPYING"], None, "COPYING"),
        (["LICENSE-2.0"], "https://www.apache.org/licenses/LICENSE-2.0", "LICENSE-2.0"),
        (["LICENSE", "docs/TERMS.md"], "docs/TERMS.md", "docs/TERMS.md (there is also LICENSE)"),
        (["TERMS.md"], f"https://huggingface.co/{NAME}/blob/main/TERMS.md", "TERMS.md"),
        (["TERMS.md"], "https://huggingface.co/somebody/else/blob/main/TERMS.md", None),
        (["LICENSE 1%.md"], None, "LICENSE%201%25.md"),
        (["README.md", "config.json"], "LICENSE.md", None),
        ([], None, None),
    ],
)
def test_which_file_is_the_licence(ask, files, link, chosen):
    _, text, note = ask({file: file.encode() for file in files}, card={"license": "other", "license_link": link})
    if chosen is None:
        assert (text, note) == ("", "The repository has no licence file; see HUB/pathology/tiny")
        assert [path for _, path in ask.hub.asked] == [f"/api/models/{NAME}"]
    else:
        assert note.partition("/blob/main/")[2] == chosen
        assert text == next(file for file in files if chosen.startswith(quote(file)))


def test_a_name_that_cannot_be_written_is_no_reason_to_be_silent(ask):
    _, text, note = ask({"LICENSE-\ud800": b"free"})
    assert (text, note[:64]) == ("", "The licence text could not be read: LICENSE-?: the hub does not ")


def test_the_revision_asked_for_is_read(ask):
    _, text, note = ask({"LICENSE": b"old"}, revision=f"@{COMMIT}")
    assert (text, note) == ("old", f"Licence text: LICENSE, HUB/pathology/tiny/blob/{COMMIT}/LICENSE")
    about, file = (path for _, path in ask.hub.asked)
    assert about == f"/api/models/{NAME}/revision/{COMMIT}"
    assert file == f"/{NAME}/resolve/{COMMIT}/LICENSE"


@pytest.mark.parametrize(
    ("content", "answer", "reason"),
    [
        (b"a\0b", None, "it is no plain text"),
        (b"%PDF-1.4", None, "it is no plain text"),
        (b" \n", None, "it is empty"),
        (b"x" * 65_537, None, "it has more than 65,536 bytes"),
        (gzip.compress(b"x", mtime=0), (200, {"Content-Encoding": "gzip"}), "the hub does not give it as it is (200)"),
        (b"x", (401, GATED), "it is shown only to who has access to the repository (401)"),
        (b"x", (403, GATED), "it is shown only to who has access to the repository (403)"),
        (b"x", (404, {}), "the hub does not give it as it is (404)"),
        (b"x", (500, {}), "the hub does not give it as it is (500)"),
    ],
)
def test_why_a_text_cannot_be_read_is_said(ask, content, answer, reason):
    name, text, note = ask({"LICENSE.md": content}, card=OTHER, answers={"LICENSE.md": answer} if answer else {})
    address = "HUB/pathology/tiny/blob/main/LICENSE.md"
    assert note == f"The licence text could not be read: LICENSE.md: {reason}; see {address}"
    assert (name, text) == ("tissue-licence, LICENSE.md", "")


def test_of_an_endless_file_little_is_taken(ask):
    _, _, note = ask({"LICENSE": bytes(50_000_000)}, answers={"LICENSE": (200, {"Connection": "close"})})
    assert "it has more than 65,536 bytes" in note
    assert MOST_TEXT <= ask.hub.sent < 20_000_000  # what lies in the buffers between the two


def test_what_comes_too_slowly_is_not_waited_for(ask, monkeypatch):
    minutes = itertools.count(0, 60)
    monkeypatch.setattr(hub, "monotonic", lambda: next(minutes))
    assert "could not be read: LICENSE: it comes too slowly;" in ask({"LICENSE": b"free"})[2]


def test_the_longest_text_allowed_is_whole(ask):
    assert ask({"LICENSE": b"x" * 65_536})[1] == "x" * 65_536


@contextmanager
def tiny(tmp_path, monkeypatch, **settings):
    """A hub that has a network, too."""
    config = {"architecture": "test_resnet", "num_classes": 1000, "pretrained_cfg": {"input_size": [3, 160, 160]}}
    files = {"config.json": json.dumps(config).encode(), "LICENSE": b"free"}
    with at_hub(Hub(NAME, files, stated={"config.json": "a" * 64}, **settings), tmp_path, monkeypatch) as there:
        yield there


@pytest.mark.parametrize("scheme", ["hf-hub", "hf_hub"])
def test_a_network_of_the_hub_is_told_with_its_text(tmp_path, monkeypatch, scheme):
    with tiny(tmp_path, monkeypatch, card={"license": "mit"}) as there:
        info = encoder_info(f"{scheme}:{NAME}")
    assert (info.licence, info.licence_text, info.source) == ("mit, see its page", "free", NAME)
    assert info.megabytes == pytest.approx(
        sum(p.numel() for p in timm.create_model("test_resnet", pretrained=False).parameters()) * 4e-6
    )
    assert info.licence_note == f"Licence text: LICENSE, {there.address}/{NAME}/blob/main/LICENSE"


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_says_how_to_get_in(tmp_path, monkeypatch, status):
    with (
        tiny(tmp_path, monkeypatch, answers={"config.json": (status, GATED), "LICENSE": (status, GATED)}) as there,
        pytest.raises(ModelError) as told,
    ):
        encoder_info(f"hf-hub:{NAME}")
    assert str(told.value) == (
        f"{NAME} is gated, or otherwise closed to you ({status}). Ask for access and accept its conditions on "
        f"{there.address}/{NAME}, then log in with `hf auth login`, or set HF_TOKEN."
    )


@pytest.mark.parametrize(
    ("status", "headers", "told"),
    [
        (401, {}, "is not on the hub, or not for everyone (401). Check the name, or log in"),
        (403, {}, "is gated, or otherwise closed to you (403)"),
        (404, {"X-Error-Code": "RepoNotFound"}, "is not on the hub, or not for everyone (404)"),
        (500, {"X-Error-Message": "\x1b[2Jno"}, "cannot be looked up on the hub: "),
    ],
)
def test_a_repository_that_is_not_told_of(tmp_path, monkeypatch, status, headers, told):
    with (
        tiny(tmp_path, monkeypatch, answers={"": (status, headers)}),
        pytest.raises(ModelError) as raised,
    ):
        encoder_info(f"hf-hub:{NAME}")
    assert told in str(raised.value)
    assert str(raised.value).isprintable()


def test_a_name_the_hub_does_not_know(tmp_path, monkeypatch):
    refusal = (404, {"X-Error-Code": "RepoNotFound"})
    with (
        tiny(tmp_path, monkeypatch, answers={"config.json": refusal, "": refusal}),
        pytest.raises(ModelError, match=f"^{NAME} is not on the hub, or not for everyone"),
    ):
        encoder_info(f"hf-hub:{NAME}")


@pytest.mark.parametrize("name", ["test_resnet", f"hf-hub:{NAME}"])
def test_without_a_hub_only_what_is_here_already_can_be_used(tmp_path, monkeypatch, name):
    from huggingface_hub import constants

    with tiny(tmp_path, monkeypatch) as there:
        encoder_info(f"hf-hub:{NAME}")  # its description is kept
        gone = there.address.replace("127.0.0.1", "127.0.0.2")  # nobody is there
        monkeypatch.setattr(constants, "ENDPOINT", gone)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", gone + "/{repo_id}/resolve/{revision}/{filename}")
        repository = TIMM if name == "test_resnet" else NAME
        with pytest.raises(ModelError, match=f"{repository} cannot be looked up on the hub: .*Check name and network"):
            encoder_info(name)
        kept = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (kept / "refs").mkdir(parents=True, exist_ok=True)
        (kept / "refs" / "main").write_text(COMMIT)
        (kept / "snapshots" / COMMIT).mkdir(parents=True, exist_ok=True)
        (kept / "snapshots" / COMMIT / "model.safetensors").write_bytes(b"")
        info = encoder_info(name)
    assert info.licence_text == ""
    assert info.licence_note.startswith(f"The licence text could not be read: {repository} cannot be looked up")
    assert info.licence == ("apache-2.0" if name == "test_resnet" else "could not be looked up")
